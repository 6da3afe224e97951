"""Pictures of a pole on a cart: six moments side by side, and place and angle over time."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrow, Polygon, Rectangle
from matplotlib.transforms import Affine2D

from jaxevo.core import Episode
from jaxevo.plotting.scenes import all_states
from jaxevo.plotting.style import BLACK, COLOURS, DASHES, GREY, new_figure, tidy
from jaxevo.tasks import Environment

BLUE, ORANGE, RED = COLOURS[0], COLOURS[1], COLOURS[5]
MAX_FRAMES = 120  # frames of a film, at most
MOMENTS = 6  # moments of an episode that are shown side by side
CART = (0.5, 0.25)  # width and height of a cart, in units of its track
POLE = 1.0  # length of the pole that is drawn: twice gymnax's half length


def draw(task: Environment, episodes: Episode) -> Figure:
    state = all_states(episodes).state
    length = int(episodes.alive[0].sum())
    seconds = np.arange(length + 1) * float(task.settings.tau)
    fell = bool(abs(state.theta[length]) > task.settings.theta_threshold_radians)
    left = bool(abs(state.x[length]) > task.settings.x_threshold)
    end = "the pole fell" if fell else "the cart left the track" if left else "time was up"

    figure = new_figure(7.6, 5.6)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.7))[:, 0]
    top.suptitle(f"return {episodes.rewards[0].sum():g}: {end}", x=0.02, ha="left", fontsize=10)
    moments = np.linspace(0, length, MOMENTS).astype(int)
    for ax, t in zip(top.subplots(1, MOMENTS), moments, strict=True):
        x = float(state.x[t])
        _scene(ax, task)
        _place(*_cart_and_pole(ax), x, float(state.theta[t]))
        ax.set_xlim(x - 0.75, x + 0.75)  # the camera goes with the cart
        ax.set_xticks([])
        ax.set_xlabel(f"{seconds[t]:.1f} s, {round(x, 1) + 0.0:.1f} m", fontsize=9)
    track, angle = bottom.subplots(2, 1, sharex=True)
    for ax, values, limit, label in (
        (track, state.x, float(task.settings.x_threshold), "cart\n(metres)"),
        (
            angle,
            np.degrees(state.theta),
            np.degrees(float(task.settings.theta_threshold_radians)),
            "pole\n(degrees)",
        ),
    ):
        ax.plot(seconds, values[: length + 1], color=BLUE, linewidth=1.4)
        for edge in (-limit, limit):
            ax.axhline(edge, color=GREY, linewidth=1, linestyle=DASHES[2])
        ax.set_ylabel(label, fontsize=9)
        reach = 1.15 * max(limit, abs(values[: length + 1]).max())
        ax.set_ylim(-reach, reach)
        tidy(ax)
    angle.set_xlabel("seconds; dotted: where an episode ends", fontsize=9)
    return figure


def film(task: Environment, episodes: Episode) -> tuple:
    state, actions = all_states(episodes).state, episodes.actions[0]
    length = int(episodes.alive[0].sum())
    figure = new_figure(7.6, 3.2)
    ax = figure.subplots()
    _scene(ax, task)
    cart, pole = _cart_and_pole(ax)
    push = FancyArrow(
        0,
        0.12,
        0.5,
        0,
        width=0.05,
        head_width=0.16,
        head_length=0.14,
        length_includes_head=True,
        color=RED,
        zorder=4,
    )
    ax.add_patch(push)
    ax.set_xlabel("metres", fontsize=9)
    title = ax.set_title("", fontsize=10, loc="left")
    stride = max(1, -(-length // MAX_FRAMES))
    times = [*range(0, length, stride), length]

    def update(t):
        x = float(state.x[t])
        _place(cart, pole, x, float(state.theta[t]))
        push.set_visible(t < length)
        if t < length:
            side = 1 if actions[t] == 1 else -1
            push.set_data(x=x + side * CART[0] / 2, dx=side * 0.45)
        title.set_text(f"{t * float(task.settings.tau):.1f} s, return {t}")

    return figure, update, times, 1 / (stride * float(task.settings.tau))


def _scene(ax: Axes, task: Environment) -> None:
    limit = float(task.settings.x_threshold)
    ax.axhline(0, color=BLACK, linewidth=1.5, zorder=1)
    for edge in (-limit, limit):
        ax.plot([edge, edge], [0, 0.3], color=GREY, linewidth=1, linestyle=DASHES[2])
    ax.set_xlim(-limit - 0.6, limit + 0.6)
    ax.set_ylim(-0.15, CART[1] + POLE + 0.15)
    ax.set_aspect("equal")
    ax.set_yticks([])
    ax.tick_params(labelsize=8.5)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)


def _cart_and_pole(ax: Axes) -> tuple[Rectangle, Polygon]:
    cart = Rectangle((0, 0), *CART, facecolor=BLACK, zorder=2, linewidth=0)
    half = 0.035
    pole = Polygon(
        [(-half, 0), (half, 0), (half, POLE), (-half, POLE)],
        closed=True,
        facecolor=ORANGE,
        zorder=3,
    )
    ax.add_patch(cart)
    ax.add_patch(pole)
    return cart, pole


def _place(cart: Rectangle, pole: Polygon, x: float, angle: float) -> None:
    cart.set_x(x - CART[0] / 2)
    lean = Affine2D().rotate(-angle).translate(x, CART[1])  # a positive angle leans to the right
    assert pole.axes is not None
    pole.set_transform(lean + pole.axes.transData)
