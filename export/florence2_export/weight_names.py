"""Take off weight names what training programs wrap around them, such as `module.`, in either layout.

`checkpoint` calls it on the names as stored, before `layouts` translates them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from florence2.errors import CheckpointError

# Of data parallelism, torch.compile, FSDP and activation checkpointing. They may wrap the model or a part of it.
WRAPPER = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The first layers of the language model show what stands before the names of a layout.
LAYER = re.compile(r"((?:.+?\.)?)language_model\.(model\.)?(?:encoder|decoder)\.layers\.0\.")


def bare(weights: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Return the weights with names that begin as those of their layout. Note what is taken off or added.

    Raise CheckpointError if the weights are those of several models.
    """
    names = {name: WRAPPER.sub("", name) for name in weights}
    wrapped = next((WRAPPER.search(name) for name in weights if name != names[name]), None)
    if wrapped:
        notes.append(f"weight names are read without {wrapped[0]!r}")
    found = [match for match in map(LAYER.match, names.values()) if match]
    before = sorted({match[1] for match in found})
    if len(before) > 1:
        raise CheckpointError(
            f"the weights are those of several models, whose names begin with {before[0]!r} and with {before[1]!r}; "
            "save one of them"
        )
    prefix = before[0] if before else ""
    if found and not found[0][2]:  # the native layout begins with `model.`, except for the head
        whole = re.fullmatch(r"(.*\.|)model\.", prefix)
        if whole:
            prefix = whole[1]
        else:
            notes.append("weight names are read with 'model.' before them, as Florence2Model saves them without it")
            body = re.compile(rf"^{re.escape(prefix)}(?!lm_head\.)")
            names = {stored: body.sub(f"{prefix}model.", name) for stored, name in names.items()}
    if prefix:
        notes.append(f"weight names are read without {prefix!r}")
        names = {stored: name.removeprefix(prefix) for stored, name in names.items()}
    if len(set(names.values())) < len(names):
        raise CheckpointError("the weights are those of several models, which differ in a prefix; save one of them")
    return {names[stored]: tensor for stored, tensor in weights.items()}
