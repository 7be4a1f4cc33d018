"""The steps of a training run: the summary of each, and when effects came and went."""

from collections.abc import Mapping

from polarax.findings.answers import HOW_MUCH, answers_of, details_of
from polarax.findings.coverage import not_compared, not_compared_of_steps
from polarax.findings.effects import kinds
from polarax.findings.words import percent
from polarax.loaders import ROLES

_BEFORE = 2  # steps whose size is told beside the last one's: of more, the first and the middle one


def summarise_history(steps: Mapping[str, dict], unusable: Mapping[int | str, str]) -> dict:
    """Summary of all steps, JSON-ready up to NaN.

    Args:
        steps: Step -> `Run.summary()`, in order.
        unusable: Steps that could not be compared, with the reason; by their names folders that are no steps.

    Returns:
        steps: step -> `Run.summary`; effects: kind -> role -> step -> in how many matrices it was named, steps without
        left out; unusable: step -> reason; reading: sentences on what was not compared, if it is much; how much,
        where and whether it is more than chance at the last step; on when effects came and went, on the last step, on
        steps that could not be compared, and the thresholds they rest on.
    """
    effects: dict[str, dict[str, dict[str, int]]] = {}
    for step, summary in steps.items():
        for kind, roles in summary["effects"].items():
            for role, count in roles.items():
                effects.setdefault(kind, {}).setdefault(role, {})[step] = count
    sentences = []
    if steps:
        sentences += not_compared_of_steps({step: summary.get("coverage") for step, summary in steps.items()})
        last, summary = list(steps.items())[-1]
        sentences += [_over_steps(sentence, steps) for sentence in answers_of({f"step {last}": summary})]
        sentences += _emergence(effects, steps)
        said = not_compared(summary.get("coverage"))
        sentences += [f"Step {last}: {sentence}" for sentence in details_of(summary) if sentence != said]
        sentences += [f"{step_in_words(step, 'Step')} was not compared: {why}" for step, why in unusable.items()]
        sentences += summary["reading"][-1:]
    left_out = {str(step): reason for step, reason in unusable.items()}
    return {"steps": dict(steps), "effects": effects, "unusable": left_out, "reading": sentences}


def _over_steps(sentence, steps):
    """The answer on how much the last step changed, and how much it was before."""
    if not sentence.startswith(HOW_MUCH):
        return sentence
    moved = [(step, summary["moved"]["median"]) for step, summary in steps.items() if summary["moved"]][:-1]
    chosen = moved if len(moved) <= _BEFORE else [moved[0], moved[len(moved) // 2]]
    before = ", ".join(f"{percent(size)} at step {step}" for step, size in chosen)
    return f"{sentence.removesuffix('.')}; before, {before} in the median." if before else sentence


def step_in_words(step: int | str, word: str = "step") -> str:
    """A step for a sentence, or the name of a folder that is none."""
    return f"{word} {step}" if isinstance(step, int) else step


def _emergence(effects, steps):
    """When each kind of effect was named, role by role."""
    measured = list(steps)
    last = measured[-1]
    found = False
    for kind, (said, _) in kinds().items():
        for role in sorted(effects.get(kind, ()), key=ROLES.index):
            named = effects[kind][role]
            total = steps[last]["roles"].get(role, {}).get("matrices", 0)
            first, latest = next(iter(named)), next(reversed(named))
            found = True
            gaps = measured.index(latest) - measured.index(first) + 1 - len(named)
            broken = f", but for {gaps} of the steps between" if gaps else ""
            if latest == last:
                when = f"from step {first} on" if first != last else f"at step {last}, the last one, alone"
                yield f"{role}: {said.phrase} {when}{broken}, in {named[last]} of {total} matrices at the end."
            else:
                when = f"at step {first} alone" if first == latest else f"from step {first} to step {latest}"
                most = max(named.values())
                yield f"{role}: {said.phrase} {when}{broken}, in at most {most} matrices; not at the end."
    if not found and any(summary["reading"] for summary in steps.values()):
        yield f"No effect stands out at {'the one step' if len(measured) == 1 else f'any of {len(measured)} steps'}."
