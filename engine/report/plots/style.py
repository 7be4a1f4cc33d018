"""How pictures look, and how they become files: one style on paper, on a light page and on a dark one.

Ink, paper and the first colours are fixed here, so that a picture inside a page can follow the page's own: `to_svg`
puts CSS variables in their place. No text of a checkpoint is ever taken for TeX.
"""

import contextlib
import functools
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sized
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from polarax.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

INK = "#1f2328"
MUTED = "#6e7781"
PAPER = "#ffffff"
# Okabe and Ito's colours (2008), told apart by colour-blind readers.
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
ORANGE = "#e69f00"
PURPLE = "#cc79a7"
GREY = "#bbbbbb"

# What a page may set for itself; see the style sheet of the report.
_THEME = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    PAPER: "var(--paper)",
    BLUE: "var(--blue)",
    VERMILION: "var(--vermilion)",
}

_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    # Where a title is by itself: to look each time whether something is in its way takes a fifth of the drawing.
    "axes.titley": 1.0,
    "figure.facecolor": PAPER,
    "figure.titlesize": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture everywhere
    "font.size": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}

_LARGEST_SIDE = 40  # inches
_LONGEST_LABEL = 64  # characters
_MARKED_POINTS = 32  # of a line in a small panel


def picture(draw: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Makes a function draw in the style of this module, or say in one line that matplotlib is missing."""

    @functools.wraps(draw)
    def drawing(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with _style():
            return draw(*args, **kwargs)

    return drawing


def new_figure(width: float, height: float, *, arranged: bool = True) -> "Figure":
    """An empty figure of this many inches that belongs to no window, and that a notebook shows.

    Without `arranged` the margins are the caller's: to arrange the panels by their texts takes as long as to draw them.
    """
    size = (min(width, _LARGEST_SIDE), min(height, _LARGEST_SIDE))
    return _figure_class()(figsize=size, layout="constrained" if arranged else None)


def panels(
    count: int, *, height: float = 1.7, share_x: bool = True, x_label: str = "layer"
) -> "tuple[Figure, list[Axes]]":
    """A figure with this many panels, at most four beside each other; height is that of one, in inches."""
    columns = min(4, count) if count != 5 else 3
    lines = math.ceil(count / columns)
    figure = new_figure(max(4.8, 2.4 * columns), height * lines + 0.75)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=share_x).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes[max(0, count - columns) : count]:  # the last panel of each column
        axis.tick_params(labelbottom=True)
        axis.set_xlabel(x_label)
    return figure, axes[:count]


def to_png(figure: "Figure") -> bytes:
    """The picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    with _ready(figure):
        FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def to_svg(figure: "Figure", name: str, *, themed: bool = False) -> str:
    """The picture as SVG.

    Args:
        figure: What to draw; while nothing changes it is drawn once for a file and for a page.
        name: Tells its ids from those of other pictures in one page.
        themed: For a page: just the `<svg>` element, in the colours of the page.
    """
    text = _svg(figure, name)
    return _themed(text) if themed else text


def _svg(figure, name):
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    kept_name, text = getattr(figure, "_kept_svg", None) or ("", "")
    if figure.stale or kept_name != name:
        file = io.BytesIO()
        with _ready(figure), matplotlib.rc_context({"svg.hashsalt": name}):
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
        text = file.getvalue().decode()
        figure._kept_svg = name, text
    return text


def _themed(text):
    """The `<svg>` element alone, in the colours of the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to these, and other pictures have them too
    text = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text, count=2).replace("xlink:href", "href")
    text = re.sub(r"\n\s*", "\n", text)
    for colour, variable in _THEME.items():
        text = text.replace(colour, variable)
    return text.strip()


def printable(text: str) -> str:
    """Text of a checkpoint as a label: one line, of bounded length, nothing that is not a character."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    half = _LONGEST_LABEL // 2
    return text if len(text) <= _LONGEST_LABEL else f"{text[: half - 1]}…{text[-half:]}"


def _style():
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("Plots need matplotlib: pip install 'polarax[plot]'.") from error
    return matplotlib.rc_context(_SETTINGS)


@contextlib.contextmanager
def _ready(figure):
    """For drawing a figure into a file: arranged, in this module's style and resolution.

    The canvas is then asked for the file itself: `savefig` would draw everything twice, once to arrange it.
    """
    with _style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may be in any script
        if figure.stale:  # something was changed since it was last drawn
            figure._kept_svg = None
        if (layout := figure.get_layout_engine()) is not None:
            # Arranged once for all files: it takes as long as to draw.
            layout.execute(figure)
            figure.set_layout_engine("none")
        canvas, resolution = figure.canvas, figure.dpi
        figure.dpi = _SETTINGS["savefig.dpi"]
        try:
            yield
        finally:
            figure.dpi = resolution
            figure.set_canvas(canvas)
        figure.stale = False  # what was set here has been set back


@functools.cache
def _figure_class():
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that a notebook shows without pyplot."""

        def _repr_png_(self):
            return to_png(self)

    return NotebookFigure


def whole_ticks(axis: "Axes") -> None:
    """Whole numbers along x."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def marker(points: Sized) -> str:
    """The marker of a line: none where there would be too many of them."""
    return "o" if len(points) <= _MARKED_POINTS else ""


def logarithmic_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Numbers for a logarithmic axis from low to high, both above 0.

    At most this many round ones: 1, 2, 5 times powers of ten, or powers alone; the ends where there are hardly any.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [unit * 10.0**decade for decade in decades for unit in (1, 2, 5)]
    if sum(low <= tick <= high for tick in fine) < 2:
        return [low, math.sqrt(low * high), high]
    for ticks in (fine, fine[::3]):
        inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(inside) <= most:
            return inside
    return inside[:: -(-len(inside) // most)]


def plain_logarithmic_axis(axis: "Axes", which: str) -> None:
    """Round numbers without exponents set as TeX along a logarithmic "x" or "y" axis, as it is scaled now."""
    ticks = logarithmic_ticks(*sorted(getattr(axis, f"get_{which}lim")()))
    getattr(axis, f"set_{which}ticks")(ticks, [f"{tick:.3g}" for tick in ticks])
    getattr(axis, f"set_{which}ticks")([], minor=True)


def logarithmic_colour_bar(figure: "Figure", image: "AxesImage", **options: Any) -> None:
    """A colour bar with round numbers for an image with logarithmic colours."""
    low, high = image.get_clim()
    assert low is not None and high is not None
    ticks = logarithmic_ticks(low, high)
    bar = figure.colorbar(image, ticks=ticks, format=lambda tick, _: f"{tick:.3g}", **options)
    bar.minorticks_off()


def legend_below(figure: "Figure", handles: list, columns: int = 4) -> None:
    """One legend for all panels, under them, in as many columns as fit."""
    for ncols in range(min(columns, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
        if ncols == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def each(axes: "list[Axes]", titles: list[str]) -> "Iterator[tuple[Axes, str]]":
    """Panels with their titles, which are set."""
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(printable(title))
        yield axis, title
