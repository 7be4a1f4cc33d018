"""Several posts of one base, read from their directory: a `Run` for each, and all of them side by side."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from polarax.errors import UsageError
from polarax.results.described import Described, read_description
from polarax.results.directory import BETWEEN_FOLDER, RUN_FILE
from polarax.results.remote.transfer import local_run
from polarax.results.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from polarax.findings.closer import Closer
    from polarax.report.notebook import HistoryPlots, RunsPlots


class Runs(Described):
    """What a comparison of one base with several posts found.

    Example:
        >>> import numpy as np, polarax
        >>> w = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        >>> posts = {label: polarax.open_checkpoint({"q": by * w}) for label, by in (("sft", 1.1), ("rl", 1.2))}
        >>> runs = polarax.compare({"q": w}, posts, progress=False)
        >>> runs.labels
        ('sft', 'rl')
        >>> [round(float(alpha), 6) for alpha in runs.frame().alpha]
        [1.1, 1.2]
        >>> round(float(runs.between("sft", "rl").frame().change_cosine[0]), 6)
        1.0
    """

    heading = "post"  # of the column that says which

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Runs":
        """Opens the directory of several posts, at a path or in a bucket.

        Raises:
            UsageError: There is none at `path`, or it cannot be read.
        """
        opened = open_run(path)
        if not isinstance(opened, Runs):
            raise UsageError(f"Run {opened.location} is of one post: open it with polarax.Run.open.")
        return opened

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the posts, in the order in which they were given."""
        return tuple(self.description.get("posts", ()))

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The labels of the posts that were compared with each other."""
        return tuple((first, second) for first, second in self.description.get("between", ()))

    def __getitem__(self, label: str) -> Run:
        """The run of the base and one post."""
        if label not in self.labels:
            raise KeyError(f"No post {label!r} in {self.location}. There are {', '.join(self.labels)}.")
        return self._run(label)

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def items(self) -> Iterator[tuple[str, Run]]:
        """(label, run) of every post that a run has been begun of."""
        for label in self.labels:
            if (self.path / label / RUN_FILE).is_file():
                yield label, self[label]

    def each(self) -> Iterator[Run]:
        """Every run that has been begun: of each post, then of each two."""
        yield from (run for _, run in self.items())
        yield from (self.between(*pair) for pair in self.pairs if self.has_begun(*pair))

    def between(self, first: str, second: str) -> Run:
        """The run of two posts, the first in place of the base.

        Its rows also say whether both changed from the base in the same direction (`change_cosine`).

        Raises:
            KeyError: These two were not compared, or were the other way round.
        """
        if (first, second) not in self.pairs:
            raise KeyError(f"{first!r} and {second!r} were not compared in {self.location}. There are {self.pairs}.")
        return self._run(f"{BETWEEN_FOLDER}/{first}/{second}")

    def _run(self, folder):
        run = Run.open(self.path / folder)
        run.keep_alive(self._temporary)
        return run

    def frame(self) -> "pd.DataFrame":
        """One row per post and matrix measured so far: `post`, then the columns of `Run.frame`."""
        return _side_by_side([((label,), run.frame()) for label, run in self.items()], (self.heading,))

    def between_frame(self) -> "pd.DataFrame":
        """One row per two posts and matrix: `post` and `other`, then the columns of `Run.frame`."""
        runs = [(pair, self.between(*pair)) for pair in self.pairs if self.has_begun(*pair)]
        return _side_by_side([(pair, run.frame()) for pair, run in runs], ("post", "other"))

    def has_begun(self, first: str, second: str) -> bool:
        """Whether a run has been begun of these two posts."""
        return (self.path / BETWEEN_FOLDER / first / second / RUN_FILE).is_file()

    def skipped(self) -> "pd.DataFrame":
        """post, name and reason of every tensor that was not compared."""
        return _side_by_side([((label,), run.skipped()) for label, run in self.items()], (self.heading,))

    def account(self) -> tuple[str, ...]:
        """What was compared of the base and of each post: the lines before the table of the command line."""
        from polarax.findings.coverage import accounts

        heading = self.heading if self.heading != Runs.heading else ""
        return accounts({label: run.coverage for label, run in self.items()}, heading=heading)

    def summary(self) -> dict:
        """posts: label -> `Run.summary`; between: the same of two posts; reading: sentences on all of them."""
        from polarax.findings.posts_summary import Compared, summarise_posts

        posts = {label: Compared(run.frame(), run.summary()) for label, run in self.items()}
        pairs = {pair: self.between(*pair) for pair in self.pairs if set(pair) <= set(posts)}
        return summarise_posts(posts, {pair: Compared(run.frame(), run.summary()) for pair, run in pairs.items()})

    def closer(self) -> "Closer":
        """Which matrices of first looks stand out in any post. As `Run.closer`; one analysis is of all posts."""
        from polarax.findings.closer import find_closer

        runs = list(self.each())
        draws = min(filter(None, (run.draws for run in runs)), default=0)
        return find_closer((run.frame() for run in runs), draws, *self.first_command)

    @property
    def plot(self) -> "RunsPlots":
        """Pictures of all posts as matplotlib figures: `runs.plot.alpha()`, `runs.plot.drift_budget()` and so on."""
        from polarax.report.notebook import RunsPlots

        return RunsPlots(self)

    def _repr_html_(self) -> str:
        from polarax.report.notebook import runs_html

        return runs_html(self)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "interrupted"
        return f"<polarax.Runs {self.location!r}, {', '.join(self.labels)}, {state}>"


class History(Runs):
    """The steps of one training run, each compared with the same base: `Runs` with steps as labels."""

    heading = "step"

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that were compared, in order."""
        return tuple(map(int, self.labels))

    def at(self, step: int) -> Run:
        """The run of the base and one step."""
        return self[str(step)]

    def frame(self) -> "pd.DataFrame":
        """One row per step and matrix measured so far: `step`, then the columns of `Run.frame`."""
        frame = super().frame()
        return frame.assign(step=frame["step"].astype(int))

    def unusable(self) -> dict[int | str, str]:
        """Steps that could not be compared, with the reason; by its name what only looks like a step that was."""
        return {
            int(step) if step.isdigit() else step: reason
            for step, reason in self.description.get("unusable", {}).items()
        }

    def summary(self) -> dict:
        """steps: step -> `Run.summary`; reading: sentences on when effects came and went, and on the last step."""
        from polarax.findings.history_summary import summarise_history

        return summarise_history({label: run.summary() for label, run in self.items()}, self.unusable())

    @property
    def plot(self) -> "HistoryPlots":  # type: ignore[override]
        """Pictures over the steps as matplotlib figures: `history.plot.alpha()`, `history.plot.drift_budget()`."""
        from polarax.report.notebook import HistoryPlots

        return HistoryPlots(self)

    def _repr_html_(self) -> str:
        from polarax.report.notebook import history_html

        return history_html(self)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "interrupted"
        return f"<polarax.History {self.location!r}, {len(self)} steps, {state}>"


def open_run(path: str | os.PathLike) -> Run | Runs:
    """Opens a run directory, of one post or of several, at a path or in a bucket.

    Raises:
        UsageError: There is no run at `path`, or it cannot be read.
    """
    path, staging = local_run(path)
    if (path / RUN_FILE).is_file():
        description = read_description(path)
        if isinstance(description, dict) and "posts" in description:
            return (History if description.get("history") else Runs)(path, staging)
    return Run.open(path)


def _side_by_side(frames, headings):
    import pandas as pd

    named = []
    for labels, frame in frames:
        for place, (heading, label) in enumerate(zip(headings, labels, strict=True)):
            frame.insert(place, heading, pd.Series([label] * len(frame), index=frame.index, dtype=str))
        named.append(frame)
    full = [frame for frame in named if len(frame)] or named[:1]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame(columns=list(headings))
