"""Inside the encoder: thin M tokens to M'. One class and one line in `TOKEN_REDUCERS`."""

from .reduction_base import TokenReducer
from .reduction_by_attention import AttentiveReducer, SamplingReducer
from .reduction_gumbel import GumbelReducer
from .reduction_merge import MergeReducer


TOKEN_REDUCERS: dict[str, type[TokenReducer]] = {
    "attentive": AttentiveReducer,
    "merge": MergeReducer,
    "gumbel": GumbelReducer,
    "sample": SamplingReducer,
}
