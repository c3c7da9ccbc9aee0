import pytest

from tests.helpers.runs import write_images
from vit_hf.data.images import find_images


def test_find_images_in_order_and_once(tmp_path, monkeypatch):
    write_images(tmp_path / "b", 2)
    write_images(tmp_path / "b" / "deep", 1)
    write_images(tmp_path / "a", 1)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "[1].png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert find_images(["b"]) == ["b/0.png", "b/1.png", "b/deep/0.png"]
    assert find_images(["b/1.png", "b"]) == ["b/1.png", "b/0.png", "b/deep/0.png"]
    assert find_images(["**/0.png"]) == ["a/0.png", "b/0.png", "b/deep/0.png"]
    assert find_images([f"{tmp_path}/a/*"]) == [f"{tmp_path}/a/0.png", f"{tmp_path}/a/[1].png"]
    assert find_images(["a/[1].png", "missing.png"]) == ["a/[1].png", "missing.png"]


def test_find_images_says_what_finds_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image in the folder"):
        find_images([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\*\.png"):
        find_images([f"{tmp_path}/*.png"])
