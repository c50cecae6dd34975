"""The model card: README.md of a model folder, for people who meet the model without its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imagebert.errors import UsageError
from imagebert.files import DIGESTS, digest_of, file_digest, read_json, read_sealed


def model_digest(folder: Path, cure: str = "restore it") -> str:
    """What names a model: the digest of weights, shape and words, as digests.json has them; they are not read.

    Raises:
        UsageError: digests.json is damaged.
    """
    if not (folder / DIGESTS).is_file():
        weights = folder / "model.safetensors"
        return file_digest(weights) if weights.is_file() else ""
    files = read_sealed(folder / DIGESTS, cure)["files"]
    names = ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json")
    return digest_of({name: files[name]["sha256"] for name in names if name in files})


def write_card(name: str, shape: Any, preprocessor: dict[str, Any], training: dict[str, Any]) -> str:
    """The card of a model as a run leaves it.

    Args:
        name: of the model's class
        shape: its configuration
        preprocessor: preprocessor_config.json
        training: training.json
    """
    data, recipe = training["data"], training["recipe"]
    facts = {
        "layers, hidden size": f"{shape.num_hidden_layers}, {shape.hidden_size}"
        + (f"; the first {shape.fusion_layer} attend within an image or a text" if shape.fusion_layer else ""),
        "fed": f"{preprocessor['max_regions']} regions, {preprocessor['max_words']} word pieces"
        + (", the whole image among the regions" if preprocessor["whole_image"] else ""),
        "region features": f"{preprocessor['feature_type']}[{preprocessor['feature_size']}], "
        f"{len(preprocessor['region_classes'])} classes, from {preprocessor['extractor'].get('name')}",
        "trained by": f"stage `{recipe['stage']}` ({recipe['task']}), {training['steps']} steps, seed {recipe['seed']}",
        "trained on": f"{data['captions']:,} captions of {data['images']:,} images",
        "regions": ", ".join(digest[:16] for digest in data["regions"]),
        "pairs": ", ".join(digest[:16] for digest in data["pairs"]),
        "started from": str(training.get("started_from") or "new weights")[:16],
        "made by": f"imagebert {training['version']}, commit {training['commit'] or 'unknown'}",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
library_name: imagebert
tags: [image-text-retrieval, vision-language]
---

# {name}

ImageBERT (Qi et al., 2020, arXiv 2001.07966): image regions and words in one Transformer.

| | |
|---|---|
{rows}

The whole recipe and all digests are in training.json. `imagebert verify FOLDER` compares every file with digests.json.

```
imagebert evaluate FOLDER --regions STORE --pairs STORE
imagebert search FOLDER STORE "two dogs on grass"
```

## Limits

- Regions must come from the extractor above: with another's features its scores mean little.
- It knows the words of its vocabulary, and what the captions that it was trained on say of pictures like theirs. What
  is wrong or one-sided there is so here.
- A score says how well a text fits a picture, compared with other texts and pictures. It is no fact about people.
"""


def figures_of(folder: Path) -> str:
    """A section of the card: R@K of all evaluations of the very model in `folder`, which lie in it or in its run.

    Raises:
        UsageError: digests.json, or a file of an evaluation, is damaged.
    """
    digest, rows = model_digest(folder), []
    for place in sorted([*folder.glob("evaluation/*/"), *folder.parent.glob("evaluation/*/")]):
        try:
            about = read_sealed(place / "evaluation.json")
        except UsageError:
            continue  # another folder
        if about.get("model") != digest:
            continue
        for file in sorted(place.glob("recall*.json")):
            found = read_json(file)
            what = f"{about['split']}: {found['images']:,} images, {found['captions']:,} captions"
            what += f", mean of {found['folds']} folds" if found["folds"] > 1 else ""
            recall = [f"{found[way][k]:.1f}" for way in ("ir", "tr") for k in ("r1", "r5", "r10")]
            data = ", ".join(one[:16] for one in (*about["data"]["regions"], *about["data"]["pairs"]))
            rows.append(f"| {what} | {' | '.join(recall)} | {data} |")
    if not rows:
        return "\n## Figures\n\nThis model has not been evaluated.\n"
    head = "| | text to image R@1 | R@5 | R@10 | image to text R@1 | R@5 | R@10 | regions, pairs |\n" + 8 * "|---" + "|"
    lines = "\n".join(rows)
    return f"\n## Figures\n\nExact recall at K in per cent: every image scored with every caption.\n\n{head}\n{lines}\n"
