"""Writes instructions with their answers, made from templates: the same seed gives the same text.

    python docs/examples/instructions.py --count=2000 --out=train.txt

Each is a turn of a user and one of an assistant, in the chat format of SmolLM2 and Qwen. The answers have a manner of
their own, which a model does not have before it is trained on them: one line that names the task, then the result.
"""

import pathlib
import random

from absl import app, flags

COUNT = flags.DEFINE_integer("count", 2000, "Instructions to write.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the draws; another one gives a text to test on.")
OUT = flags.DEFINE_string("out", None, "Text file to write.", required=True)

_WORDS = (
    "river stone window garden silver market winter letter bridge forest candle harbour mirror thunder velvet copper "
    "meadow lantern pepper saddle marble feather canyon violin cotton barrel island ribbon"
).split()
_UNITS = (
    ("kilometres", "metres", 1000),
    ("hours", "minutes", 60),
    ("kilograms", "grams", 1000),
    ("minutes", "seconds", 60),
    ("metres", "centimetres", 100),
    ("weeks", "days", 7),
)
_OPPOSITES = {
    "hot": "cold", "early": "late", "heavy": "light", "narrow": "wide", "empty": "full", "quiet": "loud",
    "smooth": "rough", "ancient": "modern", "shallow": "deep", "generous": "stingy", "scarce": "plentiful",
}  # fmt: skip
_CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo",
    "Canada": "Ottawa", "Chile": "Santiago", "Greece": "Athens", "Vietnam": "Hanoi", "Cuba": "Havana",
}  # fmt: skip


def _sum(draw: random.Random) -> tuple[str, str, str]:
    first, second = draw.randint(2, 99), draw.randint(2, 99)
    asked = draw.choice(["What is {} plus {}?", "Add {} and {}.", "Please give me the sum of {} and {}."])
    return asked.format(first, second), "addition", f"{first} + {second} = {first + second}"


def _product(draw: random.Random) -> tuple[str, str, str]:
    first, second = draw.randint(2, 12), draw.randint(2, 12)
    asked = draw.choice(["What is {} times {}?", "Multiply {} by {}."])
    return asked.format(first, second), "multiplication", f"{first} x {second} = {first * second}"


def _sorted(draw: random.Random) -> tuple[str, str, str]:
    words = draw.sample(_WORDS, draw.randint(3, 5))
    asked = draw.choice(["Sort these words from A to Z: {}.", "Put in alphabetical order: {}."])
    return asked.format(", ".join(words)), "sorting", " < ".join(sorted(words))


def _longest(draw: random.Random) -> tuple[str, str, str]:
    words = draw.sample(_WORDS, 4)
    length = max(map(len, words))
    found = [word for word in words if len(word) == length]
    asked = f"Which is the longest of these words: {', '.join(words)}?"
    return asked, "comparison", f"{' and '.join(found)}, with {length} letters"


def _converted(draw: random.Random) -> tuple[str, str, str]:
    large, small, factor = draw.choice(_UNITS)
    count = draw.randint(2, 30)
    asked = draw.choice(["How many {1} are {0} {2}?", "Convert {0} {2} to {1}."])
    return asked.format(count, small, large), "conversion", f"{count} {large} = {count * factor} {small}"


def _opposite(draw: random.Random) -> tuple[str, str, str]:
    word, other = draw.choice(list(_OPPOSITES.items()))
    asked = draw.choice(["What is the opposite of {}?", "Name an antonym of the word {}."])
    return asked.format(word), "vocabulary", f"{word} <> {other}"


def _capital(draw: random.Random) -> tuple[str, str, str]:
    country, city = draw.choice(list(_CAPITALS.items()))
    asked = draw.choice(["What is the capital of {}?", "Tell me which city is the capital of {}."])
    return asked.format(country), "geography", f"{country} -> {city}"


def _counted(draw: random.Random) -> tuple[str, str, str]:
    words = [draw.choice(_WORDS) for _ in range(draw.randint(3, 6))]
    asked = f'How many words has this: "{" ".join(words)}"?'
    return asked, "counting", f"{len(words)} words, the last of them is {words[-1]}"


_TASKS = (_sum, _product, _sorted, _longest, _converted, _opposite, _capital, _counted)


def write_instructions(count: int, seed: int) -> str:
    """So many instructions with their answers, as one text."""
    draw, turns = random.Random(seed), []
    for _ in range(count):
        asked, task, answer = draw.choice(_TASKS)(draw)
        turns.append(
            f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\nTask: {task}.\nResult: {answer}.<|im_end|>\n"
        )
    return "".join(turns)


def main(_) -> None:
    """Writes the file."""
    path = pathlib.Path(OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(write_instructions(COUNT.value, SEED.value), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
