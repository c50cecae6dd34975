"""Folders that are no WordPiece BERT, or whose files would give a text different ids, are refused by a sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE, Unigram, WordLevel
from transformers import BertTokenizer

from imagebert.data.tokens import SPECIALS, Settings, Tokenizer
from imagebert.data.vocabulary import has_vocabulary
from imagebert.errors import UsageError

PIECES = [*SPECIALS, "one", "two", "##s"]
WANTED = "the words of ImageBERT are BERT's WordPiece, give a BERT's folder or its vocab.txt"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """vocab.txt, tokenizer.json and tokenizer_config.json, as transformers writes them."""
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    Tokenizer(folder)
    return folder


def change(file: Path, what: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    what(content)
    file.write_text(json.dumps(content))


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        Tokenizer(path)
    return str(raised.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["vocab.json", "merges.txt", "tokenizer_config.json"],
            "holds a byte-pair vocabulary, as GPT-2's and RoBERTa's",
        ),
        (["spiece.model"], "holds a SentencePiece model, as T5's, ALBERT's and XLNet's are"),
        (["sentencepiece.bpe.model"], "holds a SentencePiece model, as XLM-R's is"),
        (["tokenizer.model"], "holds a SentencePiece model"),
        (["config.json"], "has neither vocab.txt nor tokenizer.json"),
    ],
)
def test_folders_of_other_kinds(names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    assert not has_vocabulary(tmp_path)
    assert refusal(tmp_path).startswith(f"{tmp_path} {said}")
    assert refusal(tmp_path).endswith(WANTED)


@pytest.mark.parametrize("model", [BPE({"a": 0}, []), Unigram([("a", 0.0)], 0, False), WordLevel({"a": 0}, "a")])
@pytest.mark.parametrize("beside", [True, False])
def test_a_tokenizer_json_of_another_kind(model: Any, beside: bool, tmp_path: Path) -> None:
    """RoBERTa's, T5's and XLM-R's, even where there is a vocab.txt."""
    Backend(model).save(str(tmp_path / "tokenizer.json"))
    if beside:
        (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    kind = type(model).__name__
    assert refusal(tmp_path) == f'{tmp_path}/tokenizer.json has the model "{kind}", BERT "WordPiece": {WANTED}'


@pytest.mark.parametrize(
    ("file", "what", "said"),
    [
        ("tokenizer.json", lambda c: c["model"].update(max_input_chars_per_word=50), "the max_input_chars_per_word 50"),
        ("tokenizer.json", lambda c: c["model"].update(unk_token="<unk>"), 'the unk_token "<unk>", BERT "\\[UNK\\]"'),
        ("tokenizer.json", lambda c: c["model"].update(continuing_subword_prefix="@@"), "continuing_subword_prefix"),
        ("tokenizer.json", lambda c: c["normalizer"].update(clean_text=False), "has the clean_text false, BERT true"),
        ("tokenizer.json", lambda c: c.update(normalizer={"type": "NFKC"}), 'normalizer "NFKC", BERT "BertNormalizer"'),
        ("tokenizer.json", lambda c: c.update(pre_tokenizer=None), 'pre_tokenizer null, BERT "BertPreTokenizer"'),
        ("tokenizer.json", lambda c: c.update(model=[]), "has no model"),
        ("tokenizer.json", lambda c: c["model"].update(vocab=PIECES), "does not number its pieces"),
        ("tokenizer.json", lambda c: c["model"]["vocab"].update(one=True), "does not number its pieces"),
        ("tokenizer.json", lambda c: c["model"]["vocab"].update({"\ud800": 8}), "half a character"),
        ("tokenizer.json", lambda c: c["model"]["vocab"].update(one=6, two=5), "number 'one' 6 and 5"),
        ("tokenizer.json", lambda c: c["model"]["vocab"].update(three=8), "number 'three' 8 and null"),
        ("tokenizer.json", lambda c: c["model"]["vocab"].pop("##s"), "number '##s' null and 7"),
        (
            "tokenizer.json",
            lambda c: c["added_tokens"].append({"id": 8, "content": "<new>", "special": True}),
            "'<new>'",
        ),
        ("tokenizer.json", lambda c: c["added_tokens"].append({"id": 5, "content": "one"}), "adds the piece 'one'"),
        ("tokenizer.json", lambda c: c["added_tokens"][0].update(id=3), r"adds the piece '\[PAD\]'"),
        ("tokenizer.json", lambda c: c.update(added_tokens=[5]), "an added piece without a name or a number"),
        ("tokenizer.json", lambda c: c["added_tokens"][0].update(id="9" * 5000), "without a name or a number"),
        ("added_tokens.json", lambda c: c.update({"<new>": 8}), r"adds the piece '<new>' .*\(in added_tokens.json\)"),
        ("tokenizer_config.json", lambda c: c.update(unk_token="<unk>"), 'calls the unk_token "<unk>", BERT .UNK.'),
        ("special_tokens_map.json", lambda c: c.update(mask_token={"content": "<mask>"}), 'the mask_token "<mask>"'),
        ("tokenizer_config.json", lambda c: c.update(bos_token="<s>"), "adds the piece '<s>'"),
        ("tokenizer_config.json", lambda c: c.update(additional_special_tokens=["<new>"]), "adds the piece '<new>'"),
        ("tokenizer_config.json", lambda c: c.update(extra_special_tokens={"a": "<new>"}), "adds the piece '<new>'"),
        ("tokenizer_config.json", lambda c: c.update(extra_special_tokens=7), "adds the piece '7'"),
        (
            "tokenizer_config.json",
            lambda c: c.update(added_tokens_decoder={"8": {"content": "new"}}),
            "the piece 'new'",
        ),
        ("tokenizer_config.json", lambda c: c.update(added_tokens_decoder=[3]), "without a name or a number"),
        ("tokenizer_config.json", lambda c: c.update(do_lower_case="no"), 'do_lower_case "no": write true or false'),
        ("tokenizer_config.json", lambda c: c.update(do_lower_case=None), "do_lower_case null: write true or false"),
        ("tokenizer_config.json", lambda c: c.update(strip_accents=0), "strip_accents 0: write true or false"),
        ("tokenizer_config.json", lambda c: c.update(tokenizer_class="MPNetTokenizerFast"), 'of a "MPNetTokenizer"'),
        ("config.json", lambda c: c.update(tokenizer_class="BertJapaneseTokenizer"), 'of a "BertJapaneseTokenizer"'),
    ],
)
def test_what_no_bert_has(bert: Path, file: str, what: Callable[[dict[str, Any]], object], said: str) -> None:
    if file == "config.json":
        change(bert / "tokenizer_config.json", lambda content: content.pop("tokenizer_class"))
    change(bert / file, what)
    with pytest.raises(UsageError, match=said):
        Tokenizer(bert)
    with pytest.raises(UsageError, match=said):
        Tokenizer(bert / "vocab.txt")  # which means the same


def test_what_a_bert_may_have(bert: Path) -> None:
    """Special pieces of its vocabulary by all their names, and what is of no matter to ids."""
    more: dict[str, Any] = {"bos_token": "[CLS]", "eos_token": None, "add_bos_token": False, "never_split": None}
    more |= {"additional_special_tokens": ["[SEP]"], "extra_special_tokens": {"gap": "one"}, "model_max_length": 1e30}
    more |= {"added_tokens_decoder": {"4": {"content": "[MASK]", "special": True}}, "strip_accents": True}
    change(bert / "tokenizer_config.json", lambda content: content.update(more))
    change(bert / "special_tokens_map.json", lambda content: content.update(unk_token={"content": "[UNK]"}))
    change(bert / "added_tokens.json", lambda content: content.update({"[CLS]": 2}))
    change(bert / "tokenizer.json", lambda content: content.update(padding=None, added_tokens=None))
    assert Tokenizer(bert).settings == Settings(True)
    assert Tokenizer(bert).encode(["One twos"]) == [[5, 6, 7]]
    (bert / "vocab.txt").unlink()
    assert has_vocabulary(bert)
    assert Tokenizer(bert).text == "\n".join(PIECES) + "\n"
    assert Tokenizer(bert / "tokenizer.json").pieces == PIECES


def test_a_tokenizer_json_alone_whose_numbers_have_gaps(bert: Path) -> None:
    (bert / "vocab.txt").unlink()
    change(bert / "tokenizer.json", lambda content: content["model"]["vocab"].update(two=9))
    assert "does not number its pieces from 0 on, each once (at 6): restore it" in refusal(bert)


def test_files_that_are_no_vocabulary(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # which takes no space
    for name, message in (
        ("pipe", "is no regular file"),
        ("bytes", "is no UTF-8"),
        ("large", "more than 16,777,216 bytes"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "is no name of a file"),
        ("nothing", "No such file"),
    ):
        with pytest.raises(UsageError, match=rf"cannot read the vocabulary .*{message}"):
            Tokenizer(tmp_path / name)
    (tmp_path / "vocab.txt").write_text("[PAD]\x0b[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(UsageError, match=r"lacks \[PAD\], \[UNK\]"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_damaged_files_beside_a_vocabulary(bert: Path, name: str) -> None:
    (bert / name).unlink(missing_ok=True)
    os.mkfifo(bert / name)
    assert "is no regular file" in refusal(bert)
    (bert / name).unlink()
    for damaged, said in (("[" * 100_000, "nested too deep"), ("[]", "is no JSON object"), ('{"a', "is no JSON")):
        (bert / name).write_text(damaged)
        assert f"{bert / name} " in refusal(bert)
        assert said in refusal(bert)


def test_a_vocabulary_of_too_many_pieces(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIALS) + "\n" * (1 << 20))
    assert "has 1,048,580 pieces" in refusal(tmp_path)
