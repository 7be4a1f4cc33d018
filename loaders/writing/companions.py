"""What goes with a model's weights: configuration, tokenizer, chat template, copied byte for byte."""

import os
import pathlib
import shutil

from polarax.loaders import formats
from polarax.loaders.formats import foreign
from polarax.loaders.stores.store import Store
from polarax.loaders.writing.files import created

# What goes with a model, where a store has no list of its files.
_COMPANIONS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
)


def copy_companions(store: Store, folder: pathlib.Path) -> None:
    """Copies what else a model needs; of a local folder all but weights, of a remote one what is usual."""
    if store.is_local:
        copy_folder(pathlib.Path(store.location), folder)
        return
    listed = store.files()
    names = _COMPANIONS if listed is None else [name for name in listed if not _is_weights(name)]
    for name in names:
        if not (folder / name).exists():
            data = whole_file(store, name)
            if data is not None:
                with created(folder / name) as opened:
                    opened.write(data)


def copy_folder(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the files beside a local checkpoint, and those of the folders in it that are not links or hidden."""
    for above, folders, files in os.walk(source):
        inside = pathlib.Path(above).relative_to(source)
        # Not what is being written, when that is inside the source.
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and not os.path.islink(os.path.join(above, name)) and not _holds_weights(above, name)
        ]
        for name in files:
            path, copy = pathlib.Path(above, name), folder / inside / name
            if name[0] == "." or _is_weights(name) or not path.is_file() or copy.exists():
                continue
            with path.open("rb") as opened, created(copy) as to:
                shutil.copyfileobj(opened, to)


def _is_weights(name: str) -> bool:
    """Whether a file has weights, in whichever format: those that are not the checkpoint's own are not copied along."""
    return name.endswith(foreign.SUFFIXES) or formats.by_name(name) is not None


def _holds_weights(above: str, name: str) -> bool:
    """Whether a folder is a checkpoint of its own, such as checkpoint-500 of a training run."""
    files = os.listdir(os.path.join(above, name))
    return any(file.endswith((".bin", ".pt")) or formats.by_name(file) is not None for file in files)


def whole_file(store: Store, name: str) -> bytes | None:
    """All of a file; None if there is none."""
    data = store.wait(store.read(name), name)
    return None if data is None else data.tobytes()
