"""`vit-hf search`: an elastic network, and evolution."""

from ..arguments import TASKS
from . import PROGRAM
from .parsing import RUN_ARGUMENTS, CommandParser, announce, fail, parse, read_arguments


DESCRIPTION = f"""
Search for a good ViT under a budget: train one elastic model that holds many (AutoFormer), and let
evolution choose.

  {PROGRAM} search --dataset photos/ --output_dir runs/search --image_size 224 \\
      --config_overrides '{{"hidden_size": 240, "num_hidden_layers": 14, "num_attention_heads": 4,
          "intermediate_size": 960, "head_dim": 64}}' \\
      --elastic_hidden_sizes 192 216 240 --elastic_depths 12 13 14 --elastic_num_attention_heads 3 4 \\
      --elastic_mlp_ratios 3.5 4 --num_train_epochs 300
  {PROGRAM} search --dataset photos/ --output_dir runs/latency --supernet runs/search/seed-0/supernet \\
      --budget latency --budgets 20 40

The supernet is trained as {PROGRAM} finetune trains, with the same flags; what is found under each
budget becomes an ordinary checkpoint in output_dir. Networks of equal blocks, trained from scratch, are
compared with it in results.md and pareto.png. What was interrupted goes on when it is started again
with the same arguments.
"""


def make_parser(name: str = "search") -> CommandParser:
    usage = "[CONFIG.yaml] --dataset DATASET --output_dir DIR [flag ...]"
    return CommandParser(name, TASKS["search"], DESCRIPTION, usage, RUN_ARGUMENTS)


def run(name: str, argv: list[str]) -> None:
    """Searches, and prints the table."""
    parser = make_parser(name)
    argv = read_arguments(parser, argv)
    announce(f"{parser.prog}: loading torch and transformers ...")
    from transformers.utils.logging import disable_progress_bar

    from ..search.running import prepare_search

    parser.complete()
    *arguments, _ = parse(parser, argv)
    try:
        run = prepare_search(*arguments)
        disable_progress_bar()
        print(run.describe(), flush=True)
        results = run.execute()
    except (OSError, TypeError, ValueError) as error:
        fail(parser, error)
    except KeyboardInterrupt:
        fail(parser, "interrupted. Start it again with the same arguments: it goes on where it was")
    print(f"\n{results}\n\nSaved to {run.folder}")
