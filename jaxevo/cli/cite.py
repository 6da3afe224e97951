"""`jaxevo cite LEARNER`: what to cite, as BibTeX."""

from jaxevo import registry
from jaxevo.cli.options import mistake
from jaxevo.cli.runs import leading_names, wants_help

USAGE = """usage: jaxevo cite [LEARNER]

Prints BibTeX of jaxevo, and of the papers that a learner comes from.
"""

SOFTWARE = """@software{{jaxevo,
  title = {{jaxevo: populations of neural networks trained without back-propagation, or beside it}},
  author = {{{{the jaxevo authors}}}},
  version = {{{version}}},
  year = {{2026}},
}}"""

# Entries by key: kind, authors, title, and where and when it appeared.
PAPERS = {
    "rumelhart1986": (
        "Rumelhart, David E. and Hinton, Geoffrey E. and Williams, Ronald J.",
        "Learning representations by back-propagating errors",
        {"journal": "Nature", "volume": "323", "pages": "533--536", "year": "1986"},
    ),
    "werbos1990": (
        "Werbos, Paul J.",
        "Backpropagation through time: what it does and how to do it",
        {
            "journal": "Proceedings of the IEEE",
            "volume": "78",
            "pages": "1550--1560",
            "year": "1990",
        },
    ),
    "williams1990": (
        "Williams, Ronald J. and Peng, Jing",
        "An efficient gradient-based algorithm for on-line training of recurrent network "
        "trajectories",
        {"journal": "Neural Computation", "volume": "2", "pages": "490--501", "year": "1990"},
    ),
    "salimans2017": (
        "Salimans, Tim and Ho, Jonathan and Chen, Xi and Sidor, Szymon and Sutskever, Ilya",
        "Evolution strategies as a scalable alternative to reinforcement learning",
        {"eprint": "1703.03864", "year": "2017"},
    ),
    "lange2022": (
        "Lange, Robert Tjarko",
        "evosax: {JAX}-based evolution strategies",
        {"eprint": "2212.04180", "year": "2022"},
    ),
    "fernandez2024": (
        "Fern{\\'a}ndez, Jes{\\'u}s Garc{\\'i}a and Keemink, Sander and van Gerven, Marcel",
        "Gradient-free training of recurrent neural networks using random perturbations",
        {"eprint": "2405.08967", "year": "2024"},
    ),
    "dalm2023": (
        "Dalm, Sander and van Gerven, Marcel and Ahmad, Nasir",
        "Effective learning with node perturbation in deep neural networks",
        {"eprint": "2310.00965", "year": "2023"},
    ),
    "baydin2022": (
        'Baydin, At{\\i}l{\\i}m G{\\"u}ne{\\c{s}} and Pearlmutter, Barak A. and Syme, Don and '
        "Wood, Frank and Torr, Philip",
        "Gradients without backpropagation",
        {"eprint": "2202.08587", "year": "2022"},
    ),
    "whitelam2021": (
        "Whitelam, Stephen and Selin, Viktor and Park, Sang-Won and Tamblyn, Isaac",
        "Correspondence between neuroevolution and gradient descent",
        {"journal": "Nature Communications", "volume": "12", "pages": "6317", "year": "2021"},
    ),
    "whitelam2022": (
        "Whitelam, Stephen and Selin, Viktor and Benlolo, Ian and Casert, Corneel and "
        "Tamblyn, Isaac",
        "Training neural networks using {M}etropolis {M}onte {C}arlo and an adaptive variant",
        {
            "journal": "Machine Learning: Science and Technology",
            "volume": "3",
            "pages": "045026",
            "year": "2022",
        },
    ),
    "fernando2017": (
        "Fernando, Chrisantha and Banarse, Dylan and Blundell, Charles and Zwols, Yori and "
        "Ha, David and Rusu, Andrei A. and Pritzel, Alexander and Wierstra, Daan",
        "{PathNet}: evolution channels gradient descent in super neural networks",
        {"eprint": "1701.08734", "year": "2017"},
    ),
    "lehman2018": (
        "Lehman, Joel and Chen, Jay and Clune, Jeff and Stanley, Kenneth O.",
        "Safe mutations for deep and recurrent neural networks through output gradients",
        {"eprint": "1712.06563", "year": "2018"},
    ),
    "such2017": (
        "Such, Felipe Petroski and Madhavan, Vashisht and Conti, Edoardo and Lehman, Joel and "
        "Stanley, Kenneth O. and Clune, Jeff",
        "Deep neuroevolution: genetic algorithms are a competitive alternative for training deep "
        "neural networks for reinforcement learning",
        {"eprint": "1712.06567", "year": "2017"},
    ),
    "jaderberg2017": (
        "Jaderberg, Max and Dalibard, Valentin and Osindero, Simon and Czarnecki, Wojciech M. and "
        "Donahue, Jeff and Razavi, Ali and Vinyals, Oriol and Green, Tim and Dunning, Iain and "
        "Simonyan, Karen and Fernando, Chrisantha and Kavukcuoglu, Koray",
        "Population based training of neural networks",
        {"eprint": "1711.09846", "year": "2017"},
    ),
    "miconi2016": (
        "Miconi, Thomas",
        "Neural networks with differentiable structure",
        {"eprint": "1606.06216", "year": "2016"},
    ),
}

# A learner's papers; the longest beginning of its name that stands here counts.
CITED = {
    "backprop": ("rumelhart1986",),
    "bptt": ("werbos1990",),
    "bptt-truncated": ("williams1990",),
    "evolution-strategy": ("salimans2017",),
    "evosax:": ("lange2022",),
    "pbt:": ("jaderberg2017",),
    "anp": ("fernandez2024", "dalm2023"),
    "np": ("fernandez2024",),
    "inp": ("dalm2023",),
    "wp": ("fernandez2024",),
    "forward-gradient": ("baydin2022",),
    "metropolis": ("whitelam2021",),
    "adaptive-monte-carlo": ("whitelam2022",),
    "pathnet": ("fernando2017",),
    "pathnet-np": ("fernando2017", "fernandez2024"),
    "safe-mutation": ("lehman2018",),
    "control": ("lehman2018",),
    "deep-ga": ("such2017",),
    "differentiable-structure": ("miconi2016",),
    "differentiable-structure-np": ("miconi2016", "fernandez2024"),
    "growing-metropolis": ("miconi2016", "whitelam2021"),
    "growing-safe-mutation": ("miconi2016", "lehman2018"),
}


def cite(words: list[str]) -> int:
    """`jaxevo cite [LEARNER]`."""
    from jaxevo import __version__

    if wants_help(words, USAGE):
        return 0
    names = leading_names(words, 1)
    if len(words) > len(names):
        mistake(f"cite takes the name of a learner and no more, got {words[len(names)]!r}")
    entries = [SOFTWARE.format(version=__version__)]
    if names:
        registry.find_learner(names[0])  # an unknown name is refused, with the nearest
        entries += [bibtex(key) for key in papers_of(names[0])]
    print("\n\n".join(entries))
    return 0


def papers_of(learner: str) -> tuple[str, ...]:
    """The keys of a learner's papers; none for a learner of somebody's own."""
    kind, _, inner = learner.partition(":")
    if kind == "pbt":
        return (*CITED["pbt:"], *papers_of(inner))
    known = [name for name in CITED if learner.startswith(name)]
    return CITED[max(known, key=len)] if known else ()


def bibtex(key: str) -> str:
    authors, title, place = PAPERS[key]
    fields = {"title": title, "author": authors} | place
    if "eprint" in place:
        fields |= {"archivePrefix": "arXiv"}
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    kind = "article" if "journal" in place else "misc"
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
