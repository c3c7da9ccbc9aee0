"""A page to try a checkpoint on: which patches it keeps of an image, what it answers, and how long that
takes.

`explorer.py` does it, `content.py` says it, `page.py` shows it (the one file that needs Gradio), and
`space.py` writes the folder of a Hugging Face Space.
"""
