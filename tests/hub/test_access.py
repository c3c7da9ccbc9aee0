"""Checks of `vit-hf push` before it loads anything."""

import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from vit_hf.cli import main
from vit_hf.hub import access


def whoami_of(answer):
    """A Hub that answers with a value, or raises."""

    class Api:
        def whoami(self):
            if isinstance(answer, Exception):
                raise answer
            return answer

    return Api


def refusal(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("no", response=httpx.Response(status, request=httpx.Request("GET", "http://hub")))


USER = {"name": "me", "auth": {"accessToken": {"role": "write"}}}
READER = {"name": "me", "auth": {"accessToken": {"role": "read", "displayName": "mine"}}}


@pytest.mark.parametrize(
    ("repo_id", "token", "answer", "error", "message"),
    [
        ("me/a b", "x", USER, ValueError, "'me/a b' is no name of a repository: give owner/name"),
        ("a/b/c", "x", USER, ValueError, "'a/b/c' is no name of a repository"),
        ("me/m", None, USER, PermissionError, "There is no token for .* hf auth login"),
        ("me/m", "x", refusal(401), PermissionError, r"does not accept the token \(401\).*hf auth login"),
        ("me/m", "x", refusal(500), ConnectionError, r"answers with an error \(500\): try again later"),
        ("me/m", "x", httpx.ConnectError("no route"), ConnectionError, "cannot be reached: no route"),
        ("me/m", "x", OSError("no route"), ConnectionError, "Check the network"),
        ("me/m", "x", READER, PermissionError, "The token 'mine' may only read"),
    ],
)
def test_refusals_say_what_to_do(monkeypatch, repo_id, token, answer, error, message):
    monkeypatch.setattr(access, "get_token", lambda: token)
    monkeypatch.setattr(access, "HfApi", whoami_of(answer))
    with pytest.raises(error, match=message):
        access.check_access(repo_id)


@pytest.mark.parametrize("user", [USER, {"name": "me"}])
def test_a_token_that_may_write_passes(monkeypatch, user):
    monkeypatch.setattr(access, "get_token", lambda: "x")
    monkeypatch.setattr(access, "HfApi", whoami_of(user))
    access.check_access("me/m")
    access.check_access("m")


def test_push_checks_before_it_loads(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("no JSON, which loading would find")
    monkeypatch.setattr(access, "get_token", lambda: None)
    with pytest.raises(SystemExit, match="vit-hf push: There is no token"):
        main(["push", str(tmp_path), "me/m"])
    with pytest.raises(SystemExit, match=r"holds no config\.json"):
        main(["push", str(tmp_path / "nowhere"), "me/m"])
