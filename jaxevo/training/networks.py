"""Networks on disk: one safetensors file that gives back the very tree that was saved.

Leaves are named by their path, such as "hidden/0/kernel", so that the file can be read without
jaxevo. What the names cannot say stands in the file's metadata: which node is a dict, a list or a
tuple, which dict key is an integer, and which leaf is a typed key of jax. A digest tells a file
that has changed since.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from jaxevo.core import Params
from jaxevo.core.tree import leaf_name, nested
from jaxevo.training.checkpoint import require_shapes, shapes

# What a node of the tree is, in the metadata; a leaf is the name of its array.
DICT, LIST, TUPLE, NONE, OTHER = "dict", "list", "tuple", "none", "other"
METADATA = "jaxevo"  # the entry of the file's metadata
KEY_MARK = "key:"  # before the implementation of a typed key, as the kind of a leaf


def save_params(path: str | pathlib.Path, params: Params) -> None:
    """Saves a network so that a crash leaves the old file or the new one, never a part.

    Args:
        path: path of the file.
        params: a tree of arrays and typed keys, of any shape, dtype and memory order.

    Raises:
        ValueError: two leaves have one path, or a leaf is no array that the file can hold.
    """
    path = pathlib.Path(path)
    leaves: dict[str, np.ndarray] = {}
    kinds: dict[str, str] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = leaf_name(keys)
        if name in leaves:
            raise ValueError(f"params must have one path for each leaf, and two are {name}")
        if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            kinds[name] = KEY_MARK + str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        if array.dtype.kind not in "biufcV" or array.dtype == np.complex128:
            raise ValueError(
                f"params must hold numbers that a file can hold, got {array.dtype} as {name}"
            )
        # the file takes bytes as they lie in memory, which may be column by column
        leaves[name] = np.ascontiguousarray(array).reshape(array.shape)
    part = path.with_name(path.name + ".part")
    # one entry: safetensors writes several in an order that differs from file to file
    described = {"structure": _described(params, ()), "kinds": kinds}
    described["sha256"] = _digest(leaves, described)
    safetensors.save_file(leaves, part, metadata={METADATA: json.dumps(described)})
    part.replace(path)


def read_params(path: str | pathlib.Path, like: Params | None = None) -> Params:
    """The network of one file, as NumPy arrays and typed keys.

    Args:
        path: path of the file.
        like: a network of the structure, shapes and dtypes that are wanted (`jax.eval_shape`
            will do). None: dicts, lists and tuples come back as they were.

    Raises:
        ValueError: the file is damaged, or holds another network, or holds nodes of a class that
            only `like` can give back, such as a named tuple.
    """
    path = pathlib.Path(path)
    try:
        leaves = safetensors.load_file(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}); a copy or a checkpoint has it whole"
        ) from None
    if metadata and METADATA not in metadata:
        raise ValueError(f"{path} is damaged: its metadata are not named {METADATA!r}")
    try:
        described = json.loads(metadata.get(METADATA, "{}"))
        if "sha256" in described and described.pop("sha256") != _digest(leaves, described):
            raise ValueError(
                f"{path} is damaged: it has changed since it was written; a copy or a checkpoint "
                "has it whole"
            )
        for name, kind in described.get("kinds", {}).items():
            leaves[name] = jax.random.wrap_key_data(
                jnp.asarray(leaves[name]), impl=kind.removeprefix(KEY_MARK)
            )
        if like is not None:
            keyed, structure = jax.tree_util.tree_flatten_with_path(like)
            names = [leaf_name(keys) for keys, _ in keyed]
            wanted = dict(zip(names, (leaf for _, leaf in keyed), strict=True))
            require_shapes(path, shapes_by_name(leaves), shapes_by_name(wanted))
            return jax.tree.unflatten(structure, [leaves[name] for name in names])
        if "structure" not in described:  # a file of before 0.1.0
            return nested(leaves)
        return _rebuilt(described["structure"], leaves, path)
    except (KeyError, TypeError, IndexError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: its metadata do not fit ({error!r})") from None


def _digest(leaves: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> str:
    """The digest of all that a file holds; `leaves` lie row by row in memory."""
    found = hashlib.sha256(json.dumps(described).encode())
    for name, array in sorted(leaves.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def shapes_by_name(leaves: Mapping[str, Any]) -> dict[str, str]:
    return {name: next(iter(shapes(leaf).values())) for name, leaf in leaves.items()}


def _described(tree: Any, path: tuple[Any, ...]) -> Any:
    """The structure of `tree` as JSON: [kind, children], and a leaf's name in a leaf's place."""
    if tree is None:
        return [NONE, []]
    if type(tree) is dict and all(type(key) in (str, int) for key in tree):
        keys = sorted(tree)
        children = [
            [key, _described(tree[key], (*path, jax.tree_util.DictKey(key)))] for key in keys
        ]
        return [DICT, children]
    if type(tree) in (list, tuple):
        children = [
            _described(child, (*path, jax.tree_util.SequenceKey(i))) for i, child in enumerate(tree)
        ]
        return [LIST if type(tree) is list else TUPLE, children]
    if jax.tree_util.all_leaves([tree]):
        return leaf_name(path)
    return [OTHER, type(tree).__qualname__]


def _rebuilt(node: Any, leaves: Mapping[str, Any], path: pathlib.Path) -> Any:
    if isinstance(node, str):
        return leaves[node]
    kind, children = node
    if kind == DICT:
        return {key: _rebuilt(child, leaves, path) for key, child in children}
    if kind in (LIST, TUPLE):
        items = [_rebuilt(child, leaves, path) for child in children]
        return items if kind == LIST else tuple(items)
    if kind == NONE:
        return None
    raise ValueError(
        f"like must be given to load {path}: it holds a {children}, which only a network of the "
        "same structure can give back"
    )
