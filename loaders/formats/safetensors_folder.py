"""Which of the safetensors files in a folder are the model, judged by their names and by what an index lists.

The order is that of transformers (`_get_resolved_checkpoint_files` in its modeling_utils.py): ``model.safetensors``,
then ``model.safetensors.index.json``. Diffusers uses other names in the same way. What transformers would refuse, but
is plainly a whole model, is opened: a complete set of numbered shards beside an index of other ones, or without any.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.formats.foreign import listed

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"

STEMS = ("model", "diffusion_pytorch_model")
"""Names of whole models, without ending, by transformers and by diffusers; the first found is opened."""

# "model.safetensors.index.fp16.json" is how transformers and diffusers name the index of a variant.
_INDEX = re.compile(r".*\.safetensors(?:\.[^.]+)?\.index(?:\.[^.]+)?\.json")
# "model-00001-of-00002", of a variant "model.fp16-00001-of-00002" or "model-00001-of-00002.fp16".
_SHARD = re.compile(r"(.*?)([0-9]{1,6})-of-([0-9]{1,6})((?:\.[^.]+)*?)\.safetensors")

_ADAPTER = re.compile(r"(?:.*[._-])?adapters?(?:[._-].*)?\.safetensors.*|pytorch_lora_weights.*")
_FIRST_ADAPTERS = ("adapter_model.safetensors", "adapters.safetensors")  # of PEFT, of mlx
_TRAINING_STATE = re.compile(r"(?:optim|optimizer|scheduler|random_states?|rng_state|training_state)(?:[._-].*)?")


class MissingFile(CheckpointError):
    """A file of a checkpoint is not there.

    Attributes:
        name: Its name in the folder.
    """

    def __init__(self, location: str, name: str, why: str):
        super().__init__(f"{location}: no such file; {why}")
        self.name = name


class ShardSet(NamedTuple):
    """Files that are numbered as the parts of one checkpoint, as far as they are there."""

    head: str  # what stands before the number
    total: str  # how many there are to be, as it is written
    tail: str  # what stands between the count and the ending
    files: dict[int, str]

    @property
    def numbers(self) -> range:
        """The numbers that there are to be: some writers count from 0, and some of those up to the count."""
        count = int(self.total)
        return range(0, count + (count in self.files)) if 0 in self.files else range(1, count + 1)

    def missing(self) -> str | None:
        """The name of the first file that is not there."""
        number = next((number for number in self.numbers if number not in self.files), None)
        return None if number is None else self.name(number)

    def name(self, number: int) -> str:
        """The name of a part."""
        width = len(next(iter(self.files.values()))) - len(self.head + "-of-" + self.total + self.tail + SUFFIX)
        return f"{self.head}{number:0{width}d}-of-{self.total}{self.tail}{SUFFIX}"

    def ordered(self) -> tuple[str, ...]:
        """The files in the order of their numbers."""
        return tuple(self.files[number] for number in sorted(self.files))


class Choice(NamedTuple):
    """What to read of a folder."""

    files: tuple[str, ...]  # in order; empty if an index names them
    index_file: str | None
    notes: tuple[str, ...]  # what else to say


def is_index(name: str) -> bool:
    """Whether a file is an index of shards, by its name."""
    return _INDEX.fullmatch(name) is not None


def is_training_state(name: str) -> bool:
    """Whether a file is of an optimiser and the like, by its name."""
    return _TRAINING_STATE.fullmatch(name.partition(SUFFIX)[0]) is not None


def shard_set(name: str, beside: Iterable[str] = ()) -> ShardSet | None:
    """The set that a file is of by its number, with those of the others that are `beside` it; None if it has none."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return None
    key = (match[1], match[3], match[4])
    return next(found for found in shard_sets({name, *beside}) if (found.head, found.total, found.tail) == key)


def shard_sets(names: Iterable[str]) -> list[ShardSet]:
    """The numbered files among some, set by set."""
    sets: dict[tuple[str, str, str], ShardSet] = {}
    for name in sorted(names):
        match = _SHARD.fullmatch(name)
        if match is not None:
            head, number, count, tail = match.groups()
            sets.setdefault((head, count, tail), ShardSet(head, count, tail, {})).files[int(number)] = name
    return list(sets.values())


def choose(folder: str, files: Sequence[str], named_by: Callable[[str], Collection[str]]) -> Choice | None:
    """The model among the files of a folder; None if there is none.

    Args:
        folder: Path or URL that ends in a slash, for messages.
        files: The names of its files.
        named_by: Gives the files that an index lists.

    Raises:
        MissingFile: A part of the model is not there.
        CheckpointError: There are several models and none that goes first.
    """
    names = [name for name in files if (name.endswith(SUFFIX) or is_index(name)) and not is_training_state(name)]
    models = [name for name in names if not _ADAPTER.fullmatch(name)]
    place = _Folder(folder, models or names, named_by)
    chosen = next((choice for stem in STEMS if (choice := place.of_stem(stem)) is not None), None)
    if chosen is None:
        chosen = place.of_adapter() if names and not models else place.of_others()
    if chosen is None:
        return None
    taken = {*chosen.files, *(named_by(chosen.index_file) if chosen.index_file is not None else ())}
    return chosen._replace(notes=(*chosen.notes, *_left_out(names, taken)))


def _left_out(names: Iterable[str], taken: Collection[str]) -> list[str]:
    """What to say of the tensors that are not read."""
    left = [name for name in names if name not in taken and not is_index(name)]
    adapters = [name for name in left if _ADAPTER.fullmatch(name)]
    others = [name for name in left if name not in adapters]
    notes = []
    if adapters:
        notes.append(f"{listed(adapters)}: an adapter beside the model, which is not added to it")
    if others:
        notes.append(f"{listed(others)}: beside the model, and not read")
    return notes


class _Folder(NamedTuple):
    """The names among which to choose."""

    folder: str
    names: Sequence[str]
    named_by: Callable[[str], Collection[str]]

    def of_stem(self, stem: str) -> Choice | None:
        """The model of a usual name: its file, what its index names, its numbered parts."""
        file, index = stem + SUFFIX, stem + INDEX_SUFFIX
        if file in self.names:
            ignored = index in self.names and not self._names_only(index, file)
            return Choice((file,), None, (unfollowed(index, file),) if ignored else ())
        sets = [found for found in shard_sets(self.names) if found.head == f"{stem}-" and not found.tail]
        if index in self.names:
            return self._of_index(index, sets)
        parts = {name for found in sets for name in found.files.values()}
        if not parts or any(not parts.isdisjoint(self.named_by(other)) for other in self.names if is_index(other)):
            return None
        return self._of_sets(sets)

    def _names_only(self, index: str, file: str) -> bool:
        """Whether an index names one file alone; not if it cannot be read, which is then nobody's concern."""
        try:
            return set(self.named_by(index)) == {file}
        except CheckpointError:
            return False

    def of_adapter(self) -> Choice | None:
        """The adapter of a folder in which nothing else is."""
        for file in _FIRST_ADAPTERS:
            if file in self.names:
                return Choice((file,), None, ())
        return self.of_others()

    def of_others(self) -> Choice | None:
        """What is there under other names: the only index, or all files."""
        indexes = [name for name in self.names if is_index(name)]
        if len(indexes) > 1:
            raise CheckpointError(
                f"{self.folder.rstrip('/')}: has several indexes; name one of them: {listed(indexes)}"
            )
        sets = shard_sets(self.names)
        if indexes:
            stem = indexes[0].partition(SUFFIX)[0]
            return self._of_index(indexes[0], [found for found in sets if found.head.rstrip("-_.") == stem])
        files: list[str] = []
        notes: list[str] = []
        for head, tail in dict.fromkeys((found.head, found.tail) for found in sets):
            chosen = self._of_sets([found for found in sets if (found.head, found.tail) == (head, tail)])
            files += chosen.files
            notes += chosen.notes
        numbered = {name for found in sets for name in found.files.values()}
        files += [name for name in self.names if name not in numbered]
        return Choice(tuple(sorted(files)), None, tuple(notes)) if files else None

    def _of_index(self, index: str, sets: Sequence[ShardSet]) -> Choice:
        """What an index names, or a complete set of its name if that is not there."""
        named = self.named_by(index)
        missing = [name for name in named if "/" not in name and name not in self.names]
        if not missing:
            return Choice((), index, tuple(_unnamed(index, named, self.names)))
        complete = [found for found in sets if found.missing() is None]
        if not complete:
            raise MissingFile(self.folder + min(missing), min(missing), f"{index} names it")
        chosen = self._of_sets(complete)
        return chosen._replace(
            notes=(f"{index} names {listed(sorted(missing))}, not there: {_span(chosen.files)} are read instead",)
        )

    def _of_sets(self, sets: Sequence[ShardSet]) -> Choice:
        """The only complete set of numbered files."""
        complete = [found for found in sets if found.missing() is None]
        if len(complete) > 1:
            spans = [_span(found.ordered()) for found in complete]
            raise CheckpointError(
                f"{self.folder.rstrip('/')}: has several safetensors checkpoints and no index that names one: "
                f"{'; '.join(spans[:3])}"
            )
        if complete:
            return Choice(complete[0].ordered(), None, ())
        raise missing_part(self.folder, sets[0])


def unfollowed(index: str, file: str) -> str:
    """What to say of an index that names other files than the one that is read."""
    return f"{index} is not followed: {file} beside it goes first, as in transformers"


def missing_part(folder: str, shards: ShardSet) -> MissingFile:
    """The error of a set that is not complete."""
    name = shards.missing()
    assert name is not None
    given = next(iter(shards.ordered()))
    return MissingFile(folder + name, name, f"{given} is one of {len(shards.numbers)} files")


def _unnamed(index: str, named: Collection[str], names: Collection[str]) -> list[str]:
    """What to say of numbered parts that are neither named nor there."""
    notes = []
    for found in shard_sets(named):
        missing = found.missing()
        if missing is not None and missing not in names:
            notes.append(f"{index} does not name {missing}, which is not there either")
    return notes


def _span(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} to {files[-1]}"
