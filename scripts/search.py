"""Search for a good ViT under a budget: train one elastic model that holds many (AutoFormer), and let
evolution choose.

    python scripts/search.py --dataset photos/ --output_dir runs/search --image_size 224 \\
        --config_overrides '{"hidden_size": 240, "num_hidden_layers": 14, "num_attention_heads": 4,
            "intermediate_size": 960, "head_dim": 64}' \\
        --elastic_hidden_sizes 192 216 240 --elastic_depths 12 13 14 --elastic_num_attention_heads 3 4 \\
        --elastic_mlp_ratios 3.5 4 --num_train_epochs 300
    python scripts/search.py --dataset photos/ --output_dir runs/latency --supernet
    runs/search/seed-0/supernet \\
        --budget latency --budgets 20 40

The supernet is trained as scripts/finetune.py trains, with the same flags; what is found under each budget
becomes an ordinary checkpoint in output_dir. Networks of equal blocks, trained from scratch, stand beside it
in results.md and pareto.png. What was interrupted goes on when it is started again with the same arguments.
"""

import sys

from transformers.utils.logging import disable_progress_bar

from vit_hf.data.arguments import DataArguments
from vit_hf.data.augmentation import AugmentationArguments
from vit_hf.search.arguments import SearchArguments
from vit_hf.search.running import prepare_search
from vit_hf.training.arguments import FinetuningArguments, ModelArguments, RunArguments
from vit_hf.training.command_line import make_parser, parse_arguments


def main(argv: list[str] | None = None) -> None:
    groups = [
        ModelArguments,
        DataArguments,
        AugmentationArguments,
        FinetuningArguments,
        SearchArguments,
        RunArguments,
    ]
    parser = make_parser(
        groups, __doc__, usage="%(prog)s [CONFIG.yaml] --dataset DATASET --output_dir DIR [flag ...]"
    )
    arguments = parse_arguments(parser, argv)
    try:
        run = prepare_search(*arguments)
        disable_progress_bar()
        print(run.describe(), flush=True)
        results = run.execute()
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"search.py: {error}")
    except KeyboardInterrupt:
        sys.exit("\nsearch.py: interrupted. Start it again with the same arguments: it goes on where it was")
    print(f"\n{results}\n\nSaved to {run.folder}")


if __name__ == "__main__":
    main()
