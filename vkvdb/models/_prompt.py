"""The chat header, the prefix and the image's place in the sequence, proven on token ids."""

from __future__ import annotations

from typing import Any

from vkvdb.errors import BadCheckpoint


def rendered(tokenizer: Any, image: str, opening: str, name: str) -> tuple[str, str]:
    """(what the chat template puts before the image, what the image begins with).

    `image` is the placeholder's text and `opening` what stands right before it (Qwen's `<|vision_start|>`), or empty.
    """
    text = tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    at = text.find(opening + image)
    if at < 0:
        raise BadCheckpoint(
            name=name, why=f"its chat template puts no {image} for an image", hint="its tokenizer and config.json do not fit"
        )
    return text[:at], opening + image


def ids_before_and_at(
    tokenizer: Any, *, image: str, image_id: int, opening: str, prefix: str, name: str
) -> list[int]:
    """Token ids of header, prefix and one image placeholder, which is the last of them.

    Chat templates may move an image in front of the text, so the prefix is put into the rendered text, right before the
    image. Raises BadCheckpoint unless the ids contain the prefix before the one placeholder.
    """
    header, picture = rendered(tokenizer, image, opening, name)
    spaced = f"{prefix}\n" if prefix else ""
    ids = encode(tokenizer, header + spaced + picture)
    if ids.count(image_id) != 1 or ids[-1] != image_id:
        raise BadCheckpoint(
            name=name, why=f"its tokenizer does not keep {image} as one token", hint="its tokenizer and config.json do not fit"
        )
    if prefix and len(ids) <= len(encode(tokenizer, header + picture)):
        raise BadCheckpoint(name=name, why="the prefix does not appear before the image", hint="try another prefix")
    return ids


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids as the model's own processor makes them: special tokens once, not twice where the template wrote them."""
    bos = tokenizer.bos_token
    ids: list[int] = tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
    return ids
