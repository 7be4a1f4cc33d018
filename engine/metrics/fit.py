"""What one rotation of both sides and one scale leave of the post: the framework's own model."""

from polarax import kernels
from polarax.metrics.catalogue import FIT, Control, ControlKind, Metric, Shown, register
from polarax.metrics.controlled import controlled
from polarax.metrics.matrix_pair import MatrixPair, Readings


def read_fit(pair: MatrixPair) -> Readings:
    """The columns of `FIT`."""
    fit, control = kernels.fit_of_frames(pair.vectors), pair.control
    error, size = fit.error, pair.spectra.change_norm
    return {
        **{f"fit_{name}": value for name, value in fit._asdict().items()},
        **controlled("fit_error", error, size, null=control.fit_error, std=control.std.fit_error),
    }


register(
    FIT,
    [
        Metric(
            "fit_error",
            "what one rotation of both sides and one scale leave of the post, over ||W_post||",
            Control(
                null="control of fit_error, root mean square",
                std="standard deviation of fit_error under the control",
                kind=ControlKind.LAW,
                sampled=True,
                std_shown=False,
            ),
            Shown.PAGE | Shown.FACTS | Shown.LAYERS,
            heading="fit error",
        ),
        Metric("fit_alpha", "the scale of that fit"),
        Metric("fit_error_unchanged", "what the base itself leaves, ||W_post - W_base|| / ||W_post||"),
        Metric("fit_error_scaled", "what the best multiple of the base leaves"),
    ],
    read_fit,
)
