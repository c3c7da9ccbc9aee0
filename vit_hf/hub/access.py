"""Checks of a push before anything is loaded or written."""

from huggingface_hub import HfApi, get_token
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id


# Remedy if the token may not write.
REMEDY = (
    "Create one with permission to write at https://huggingface.co/settings/tokens, and log in with it: hf "
    "auth login"
)


def check_access(repo_id: str) -> None:
    """Checks the name of a repository, the network and the token, as far as they are known in advance.

    Args:
        repo_id: "owner/name", or a name in the user's own namespace.

    Raises:
        ValueError: if the name is none of the Hub's.
        ConnectionError: if the Hub cannot be reached.
        PermissionError: if there is no token, or the Hub does not accept it for writing.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is no name of a repository: give owner/name, or a name of your own, of letters, "
            f"digits, '-', '_' and '.'. {error}"
        ) from error
    if get_token() is None:
        raise PermissionError(f"There is no token for {ENDPOINT}. {REMEDY}")
    try:
        user = HfApi().whoami()
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(f"{ENDPOINT} does not accept the token ({status}). {REMEDY}") from error
        raise ConnectionError(f"{ENDPOINT} answers with an error ({status}): try again later.") from error
    except (httpx.HTTPError, OSError) as error:
        raise ConnectionError(
            f"{ENDPOINT} cannot be reached: {error}. Check the network, and that HF_HUB_OFFLINE is not set."
        ) from error
    token = (user.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise PermissionError(f"The token {token.get('displayName', '')!r} may only read. {REMEDY}")
