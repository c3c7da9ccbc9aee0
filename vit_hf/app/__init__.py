"""Page to try a checkpoint: which patches of an image it keeps, its prediction, and the time it takes.

`explorer.py` runs the checkpoint, `content.py` makes the texts, `page.py` shows them (the only file that
needs Gradio), and `space.py` writes the folder of a Hugging Face Space.
"""
