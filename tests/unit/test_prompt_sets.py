"""Prompt sets: what is read, what is refused in which words, what cannot change."""

import copy
import json
import pickle  # noqa: TID251 - Ray carries arguments this way
from pathlib import Path
from typing import Any

import pytest

from actors.prompt_sets import Metadata, PromptSet, load_jsonl, load_text, plain_set
from buffer.records import MAX_PROMPT_BYTES
from deploy.run.prompt_checks import readable_prompts, warn_of_repeated
from deploy.settings.prompt_sources import prompt_set
from deploy.settings.prompts import FilePrompts, JsonlPrompts
from deploy.settings.run_config import load_config

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"

LINES = [
    {"prompt": " a red circle ", "counts": {"red": 1}, "tags": ["easy", ["one"]]},
    {"prompt": "two blue squares", "counts": {"blue": 2}},
]


def written(folder: Path, *lines: object) -> Path:
    path = folder / "prompts.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def text_file(folder: Path, content: bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(content)
    return path


def refusal(folder: Path, *lines: object) -> str:
    with pytest.raises(ValueError, match=r"prompts\.jsonl") as caught:
        load_jsonl(written(folder, *lines))
    return str(caught.value).partition("prompts.jsonl: ")[2]


def test_a_line_is_a_prompt_and_the_rest_of_it_is_its_metadata(tmp_path: Path) -> None:
    found = load_jsonl(written(tmp_path, *LINES, ""))
    assert found.prompts == ("a red circle", "two blue squares")
    assert found.table["a red circle"] == {"counts": {"red": 1}, "tags": ("easy", ("one",))}
    assert found.table["two blue squares"] == {"counts": {"blue": 2}}


def test_the_prompt_may_have_another_key(tmp_path: Path) -> None:
    path = written(tmp_path, {"caption": "a cat", "prompt": 3})
    assert load_jsonl(path, "caption") == PromptSet(("a cat",), (Metadata({"prompt": 3}),))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a cat", "line 2 is no JSON (Expecting value at column 1)"),
        ('{"prompt": "a", "x": NaN}', "line 2 is no JSON (NaN is no number of JSON)"),
        (["a cat"], "line 2 is no object but ['a cat']"),
        ({"text": "a cat", "n": 1}, "line 2 has no key 'prompt'; it has text, n"),
        ({"prompt": "  "}, "the prompt of line 2 is empty"),
        ({"prompt": 7}, "the prompt of line 2 is no text but 7"),
        ({"prompt": "a" * 9000}, "the prompt of line 2 has 9000 bytes; 8192 are allowed"),
        ('{"prompt": "\\ud800"}', "line 2 holds what is no JSON or no Unicode"),
        ('{"prompt": "a", "x": ["\\udfff"]}', "line 2 holds what is no JSON or no Unicode"),
        (
            {"prompt": "a red circle", "counts": {"red": 2}},
            "line 2 has the prompt of line 1, 'a red circle', with other metadata",
        ),
    ],
)
def test_a_bad_line_is_told_with_its_number_and_its_fault(
    tmp_path: Path, line: object, told: str
) -> None:
    assert refusal(tmp_path, LINES[0], line).startswith(told)


def test_several_bad_lines_are_told_at_once(tmp_path: Path) -> None:
    text = refusal(tmp_path, {"prompt": ""}, "[", "[", LINES[0], "[", "[")
    assert text.count("line ") == 3
    assert text.endswith("; and 2 more")


def test_a_file_without_prompts_and_a_missing_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts\.jsonl holds no prompt"):
        load_jsonl(written(tmp_path, "", " "))
    with pytest.raises(ValueError, match="name a text file with one JSON object a line"):
        load_jsonl(tmp_path / "nowhere.jsonl")


def test_a_prompt_may_come_again_with_the_same_metadata_and_is_counted(tmp_path: Path) -> None:
    found = load_jsonl(written(tmp_path, LINES[1], LINES[0], LINES[1]))
    assert found.prompts == ("two blue squares", "a red circle", "two blue squares")
    assert found.repeated == 1
    assert plain_set(["a", "b", "c"]).repeated == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.__setitem__("x", 1),
        lambda m: m.update(x=1),
        lambda m: m.pop("counts"),
        lambda m: m.clear(),
        lambda m: m["counts"].__setitem__("red", 5),
        lambda m: m["tags"].append("x"),
    ],
)
def test_metadata_cannot_be_changed_however_deep(change: Any) -> None:
    metadata = Metadata({"counts": {"red": 1}, "tags": ["easy"]})
    with pytest.raises((TypeError, AttributeError)):
        change(metadata)
    assert json.loads(json.dumps(metadata)) == {"counts": {"red": 1}, "tags": ["easy"]}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301
def test_metadata_travels_between_processes(copied: Any) -> None:
    metadata = Metadata({"counts": {"red": 1}, "tags": ["easy"]})
    assert copied(metadata) == metadata
    assert type(copied(metadata)["counts"]) is Metadata


def test_a_config_names_either_file(tmp_path: Path) -> None:
    path = written(tmp_path, *LINES)
    text = tmp_path / "prompts.txt"
    text.write_text("a cat\na dog\n", encoding="utf-8")
    found = prompt_set(JsonlPrompts(kind="jsonl", file=str(path)), 0)
    assert found.metadata[1] == {"counts": {"blue": 2}}
    assert prompt_set(FilePrompts(file=str(text)), 0).table == {"a cat": {}, "a dog": {}}


def test_a_prompt_of_both_sets_with_other_metadata_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, *LINES)
    (tmp_path / "other").mkdir()
    for count, problems in ((2, 0), (3, 1)):
        line = {"prompt": "two blue squares", "counts": {"blue": count}}
        other = written(tmp_path / "other", line, {"prompt": "a dog"})
        config = load_config(SMOKE, [f"prompts={path}", f"evaluation.prompts={other}"])
        found, told = readable_prompts(config)
        assert (len(found), len(told)) == (2, problems)
    assert "'two blue squares' is a training prompt too, with other metadata" in told[0]


def test_repeated_prompts_are_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, LINES[0], LINES[1], LINES[1])
    found, _ = readable_prompts(load_config(SMOKE, [f"prompts={path}"]))
    warn_of_repeated(found)
    assert "prompts: 1 of 3 prompts are there more than once" in caplog.text


def test_held_out_prompts_that_are_trained_on_are_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "train.txt").write_text("a cat\na dog\n")
    for name, lines, told in (("own", "a fox\na hen\n", False), ("both", "a fox\na cat\n", True)):
        path = tmp_path / f"{name}.txt"
        path.write_text(lines)
        files = [f"prompts={tmp_path / 'train.txt'}", f"evaluation.prompts={path}"]
        found, _ = readable_prompts(load_config(SMOKE, files))
        warn_of_repeated(found)
        assert ("1 of 2 are training prompts too, such as 'a cat'" in caplog.text) == told


def test_blank_lines_and_outer_spaces_are_skipped(tmp_path: Path) -> None:
    path = text_file(tmp_path, b"\n  a red cat \r\n\t\n\na dog")
    assert load_text(path).prompts == ("a red cat", "a dog")


def test_a_byte_order_mark_is_not_part_of_the_first_prompt(tmp_path: Path) -> None:
    assert load_text(text_file(tmp_path, b"\xef\xbb\xbfa cat\n")).prompts == ("a cat",)


def test_a_line_separator_inside_a_prompt_does_not_cut_it(tmp_path: Path) -> None:
    path = text_file(tmp_path, "a\u2028b\nc".encode())
    assert load_text(path).prompts == ("a\u2028b", "c")


def test_a_file_that_is_not_utf8_is_named_with_the_offset(tmp_path: Path) -> None:
    path = text_file(tmp_path, b"\xef\xbb\xbfa cat\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"prompts\.txt is not UTF-8: byte 0xe9 at offset 12"):
        load_text(path)


def test_a_file_without_prompts_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts\.txt holds no prompt"):
        load_text(text_file(tmp_path, b" \n\n"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.txt \(No such file or directory\)"):
        load_text(tmp_path / "nowhere.txt")


def test_a_folder_is_not_a_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Is a directory"):
        load_text(tmp_path)


def test_a_prompt_of_a_text_file_that_records_cannot_hold_is_told_with_its_line(
    tmp_path: Path,
) -> None:
    path = text_file(tmp_path, b"a cat\n" + b"x" * (MAX_PROMPT_BYTES + 1))
    with pytest.raises(ValueError, match=r"the prompt of line 2 has 8193 bytes; 8192 are allowed"):
        load_text(path)
