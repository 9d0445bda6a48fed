"""The computation graph: who writes to the residual stream, who reads it, and in what order.

Senders in order: embed (and pos, when it is split off); per layer the heads 0..H-1, then the MLP.
Receivers in order: per layer q per head, k and v per key/value head, the MLP input; last the logits.
An edge is a cell of the [senders, receivers] score matrix; a cell is legal where the sender comes before the
receiver in the forward pass. With parallel attention and MLP there is no head -> MLP edge inside a layer.

Names: `embed`, `pos`, `9.6` (a head: layer.head), `mlp3`; receivers `9.6.q`, `9.2.k`, `9.2.v` (k and v are numbered by
key/value head), `mlp3`, `logits`; an edge is `5.5->9.6.q`.

Edges may be split by position role (Haklay et al. 2025, arXiv 2502.04577): the residual stream carries nothing from one
position to another, so every edge falls apart into its parts at the tokens of each role, and a receiver stands once for
each: `9.6.q@S2`. What a sender writes at the tokens of one role is one of its outputs. The logits are read at `end`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from acdc.errors import Fault, GraphMismatch

BoolMatrix = npt.NDArray[np.bool_]
END = "end"  # the role of a prompt's last token, and of an answer's tokens after it
OTHER = "other"  # the role of tokens that have none
Indices = npt.NDArray[np.int64]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class GraphShape:
    """The few facts that determine a graph.

    heads_share_norm: a norm spans the heads of a layer (post-norms of Gemma 2/3), so they live or die together.
    split_position: the position embedding is a sender of its own. roles: those that edges are split by, `end` and
    `other` among them; none for edges at all positions alike.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    has_mlp: bool = True
    is_parallel: bool = False
    heads_share_norm: bool = False
    split_position: bool = False
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.roles and not {END, OTHER} <= set(self.roles)) or len(set(self.roles)) < len(self.roles):
            raise GraphMismatch(f"edges cannot be split by roles {self.roles}: each once, {END} and {OTHER} among them")
        if min(self.n_layers, self.n_heads, self.n_kv_heads) < 1 or self.n_heads % self.n_kv_heads:
            raise GraphMismatch(
                f"no such graph: {self.n_layers} layers, {self.n_heads} heads, {self.n_kv_heads} key/value heads; "
                "each must be positive and key/value heads must divide heads"
            )

    def split_by(self, roles: Iterable[str]) -> GraphShape:
        """The same with every edge split by these roles, in an order of their own: so all that name the same fit
        together."""
        named = sorted(set(roles) - {END, OTHER})
        return replace(self, roles=(*named, END, OTHER))


@dataclass(frozen=True, order=True)
class Sender:
    """A writer to the residual stream. kind: embed, pos, head or mlp; layer and head are -1 where there is none."""

    layer: int
    kind: str
    head: int = -1

    @property
    def name(self) -> str:
        match self.kind:
            case "head":
                return f"{self.layer}.{self.head}"
            case "mlp":
                return f"mlp{self.layer}"
            case _:
                return self.kind


@dataclass(frozen=True, order=True)
class Receiver:
    """A reader of the residual stream. kind: q, k, v, mlp or logits. `head` counts key/value heads for k and v. role:
    at whose tokens, where edges are split by role; the logits have none."""

    layer: int
    kind: str
    head: int = -1
    role: str = ""

    @property
    def name(self) -> str:
        return f"{self._input}@{self.role}" if self.role else self._input

    @property
    def _input(self) -> str:
        match self.kind:
            case "mlp":
                return f"mlp{self.layer}"
            case "logits":
                return "logits"
            case _:
                return f"{self.layer}.{self.head}.{self.kind}"


@dataclass(frozen=True)
class Edge:
    """A legal cell: `sender` and `receiver` are indices into the score matrix."""

    sender: int
    receiver: int


class Graph:
    """All senders, receivers and legal edges of a shape. Immutable; graphs of equal shape are equal."""

    def __init__(self, shape: GraphShape) -> None:
        self.shape = shape
        self.senders = tuple(_senders(shape))
        self.receivers = tuple(_receivers(shape))
        self._sender_index = {sender.name: i for i, sender in enumerate(self.senders)}
        self._receiver_index = {receiver.name: i for i, receiver in enumerate(self.receivers)}
        self.n_senders_before = np.array([self._count_before(r) for r in self.receivers], dtype=np.int64)
        self.legal: BoolMatrix = np.arange(self.n_senders)[:, None] < self.n_senders_before[None, :]
        self.legal.setflags(write=False)

    @property
    def n_senders(self) -> int:
        return len(self.senders)

    @property
    def n_receivers(self) -> int:
        return len(self.receivers)

    @functools.cached_property
    def n_edges(self) -> int:
        return int(self.legal.sum())

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the shape: two circuits compare cell by cell where this agrees."""
        facts = asdict(self.shape)
        if not self.shape.roles:
            del facts["roles"]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.shape == other.shape

    def __hash__(self) -> int:
        return hash(self.shape)

    def __repr__(self) -> str:
        return f"Graph({self.n_senders} senders x {self.n_receivers} receivers, {self.n_edges} edges)"

    # -- names -----------------------------------------------------------------------------------------------------

    def sender_index(self, name: str) -> int:
        """Raises GraphMismatch for a name that this graph has not."""
        return self._index(self._sender_index, name, "sender")

    def receiver_index(self, name: str) -> int:
        """Raises GraphMismatch for a name that this graph has not."""
        return self._index(self._receiver_index, name, "receiver")

    def edge(self, name: str) -> Edge:
        """Parse `5.5->9.6.q`. Raises GraphMismatch for an unknown end or a cell that is not legal."""
        sender_name, arrow, receiver_name = (part.strip() for part in name.partition("->"))
        if not arrow:
            raise GraphMismatch(f"{name!r} is no edge: write sender->receiver, like 5.5->9.6.q or embed->mlp0")
        edge = Edge(self.sender_index(sender_name), self.receiver_index(receiver_name))
        if not self.legal[edge.sender, edge.receiver]:
            raise GraphMismatch(f"there is no edge {name!r}: {sender_name} does not come before {receiver_name}")
        return edge

    def parts(self, name: str) -> list[Edge]:
        """The edges of a name: one at `5.5->9.6.q@S2`; at `5.5->9.6.q`, where edges are split, its parts at all roles.
        Raises GraphMismatch as `edge` does."""
        if not self.shape.roles or "@" in name:
            return [self.edge(name)]
        whole = self.whole.edge(name)
        return [Edge(whole.sender, part) for part in np.unique(self.parts_of[whole.receiver]).tolist()]

    def edge_name(self, edge: Edge) -> str:
        return f"{self.senders[edge.sender].name}->{self.receivers[edge.receiver].name}"

    def edges(self) -> Iterator[Edge]:
        """Every legal edge, receiver by receiver in canonical order, senders from early to late."""
        for r in range(self.n_receivers):
            for s in range(int(self.n_senders_before[r])):
                yield Edge(s, r)

    def mask_of_edges(self, names: Iterable[str]) -> BoolMatrix:
        """[senders, receivers], true at the named edges, as `parts` reads names. All unknown ones are reported
        together."""
        edges: list[Edge] = []
        faults = []
        for name in names:
            try:
                edges += self.parts(name)
            except GraphMismatch as error:
                faults.append(Fault(name, error.message))
        if faults:
            raise GraphMismatch("not all of the edges named are in this graph", faults)
        return self.mask_of(edges)

    def mask_of(self, edges: Iterable[Edge]) -> BoolMatrix:
        """[senders, receivers], true at these edges."""
        mask = np.zeros_like(self.legal)
        for edge in edges:
            mask[edge.sender, edge.receiver] = True
        return mask

    def names_of(self, mask: BoolMatrix) -> list[str]:
        """The names of a mask's edges, in canonical order: the inverse of `mask_of_edges`."""
        return [self.edge_name(edge) for edge in self.edges() if mask[edge.sender, edge.receiver]]

    def mask_of_nodes(self, names: Iterable[str]) -> BoolMatrix:
        """Every edge between two of the named nodes; embed (and pos) and logits are always among them."""
        wanted = {name.strip() for name in names}
        known = {sender.name for sender in self.senders} | {"logits"}
        if unknown := sorted(wanted - known):
            faults = [Fault(name, f"no such node; {self._names_in_words}") for name in unknown]
            raise GraphMismatch("not all of the nodes named are in this graph", faults)
        wanted |= {"embed", "pos", "logits"}
        rows = np.array([sender.name in wanted for sender in self.senders])
        columns = np.array([bool(wanted & set(self.nodes_read_by(r))) for r in range(self.n_receivers)])
        mask: BoolMatrix = self.legal & rows[:, None] & columns[None, :]
        return mask

    def nodes_read_by(self, receiver: int) -> tuple[str, ...]:
        """Names of the nodes whose input this receiver is: one, but for k and v, which all heads of a group share."""
        r = self.receivers[receiver]
        if r.kind in ("k", "v"):
            size = self.shape.n_heads // self.shape.n_kv_heads
            return tuple(f"{r.layer}.{h}" for h in range(r.head * size, (r.head + 1) * size))
        match r.kind:
            case "q":
                return (f"{r.layer}.{r.head}",)
            case "mlp":
                return (f"mlp{r.layer}",)
            case _:
                return (r.name,)

    def receivers_of(self, node: str) -> list[int]:
        """The receivers that are a node's input, of a head its q, k and v: the inverse of `nodes_read_by`.

        Raises GraphMismatch for a name that this graph has not."""
        found = [r for r in range(self.n_receivers) if node in self.nodes_read_by(r)]
        if not found:
            raise GraphMismatch(f"this graph has no node {node!r} that reads; {self._names_in_words}")
        return found

    # -- edges in a row ------------------------------------------------------------------------------------------------

    def in_order(self, matrix: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """[senders, receivers] -> [n_edges]: the legal cells in canonical order, that of `edges`."""
        ordered: npt.NDArray[Number] = matrix.T[self.legal.T]
        return ordered

    def matrix_of(self, ordered: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """[n_edges] -> [senders, receivers], zero where no edge is. The inverse of `in_order`."""
        matrix = np.zeros(self.legal.shape, dtype=ordered.dtype)
        matrix.T[self.legal.T] = ordered
        return matrix

    # -- roles -----------------------------------------------------------------------------------------------------

    @property
    def n_roles(self) -> int:
        """1 where edges are not split."""
        return len(self.shape.roles) or 1

    @functools.cached_property
    def whole(self) -> Graph:
        """The graph with no edge split; this one where none is."""
        return Graph(replace(self.shape, roles=())) if self.shape.roles else self

    def whole_of(self, receiver: int) -> int:
        """The receiver of `whole` that a receiver is a part of."""
        return receiver // self.n_roles

    @functools.cached_property
    def parts_of(self) -> Indices:
        """[receivers of `whole`, roles]: the receivers that each falls apart into; the logits are read at one role."""
        parts = np.arange(self.whole.n_receivers * self.n_roles).reshape(-1, self.n_roles)
        return np.minimum(parts, self.n_receivers - 1)

    @functools.cached_property
    def role_of(self) -> Indices:
        """[receivers]: the number of the role at whose tokens each reads; 0 where edges are not split."""
        roles = np.arange(self.n_receivers) % self.n_roles
        roles[-1] = self.shape.roles.index(END) if self.shape.roles else 0
        return roles

    @property
    def n_outputs(self) -> int:
        return self.n_senders * self.n_roles

    def output(self, sender: int, receiver: int) -> int:
        """What an edge carries: the number of its sender's output at the tokens of its receiver's role. Sender by
        sender, each at every role."""
        return sender * self.n_roles + int(self.role_of[receiver])

    @functools.cached_property
    def output_of(self) -> Indices:
        """[senders, receivers]: the same of every edge."""
        return np.arange(self.n_senders)[:, None] * self.n_roles + self.role_of[None, :]

    # -- connection ------------------------------------------------------------------------------------------------

    def connected(self, kept: BoolMatrix) -> BoolMatrix:
        """The kept edges that lie on a path embed -> logits: of one circuit [senders, receivers], or of each of several
        [..., senders, receivers].

        Heads under a common norm are one node for this: what enters one of them moves the shares of all.
        """
        feeds, kept = self.feeds, kept & self.legal
        reached = np.zeros((*kept.shape[:-2], self.n_outputs), dtype=bool)
        reached[..., : self.n_inputs * self.n_roles] = True
        for r in range(self.n_receivers):  # canonical order: every sender before r is settled
            reached |= feeds[r] & _any_of(kept[..., r] & self._at_role(reached, r))
        connected: BoolMatrix = kept & reached[..., self.output_of] & self.reaches_logits(kept)[..., None, :]
        return connected

    def reaches_logits(self, kept: BoolMatrix) -> npt.NDArray[np.bool_]:
        """[..., receivers]: whether what a receiver reads has a kept way on to the logits. kept: legal edges only,
        [..., senders, receivers]."""
        feeds = self.feeds
        useful = np.zeros((*kept.shape[:-2], self.n_outputs), dtype=bool)  # has a kept way to the logits
        reaches = np.empty((*kept.shape[:-2], self.n_receivers), dtype=bool)
        for r in reversed(range(self.n_receivers)):
            way = _any_of(feeds[r] & useful) if self.receivers[r].kind != "logits" else np.True_
            reaches[..., r : r + 1] = way
            at_role = self._at_role(useful, r)
            at_role |= self.join_heads(kept[..., r] & way)
        return reaches

    @functools.cached_property
    def feeds(self) -> BoolMatrix:
        """[receivers, outputs]: which outputs depend directly on what a receiver reads. Keys and values are read from
        every position after them, of which nothing is said but that none comes after `end`."""
        if self.shape.roles:
            return self._feeds_by_role()
        feeds = np.zeros((self.n_receivers, self.n_senders), dtype=bool)
        for r, receiver in enumerate(self.receivers):
            if receiver.kind != "logits":
                for name in self.nodes_read_by(r):
                    feeds[r, self._sender_index[name]] = True
                feeds[r] = self.join_heads(feeds[r])
        return feeds

    def _feeds_by_role(self) -> BoolMatrix:
        feeds = np.zeros((self.n_receivers, self.n_senders, self.n_roles), dtype=bool)
        for r, receiver in enumerate(self.receivers):
            own, role = self.whole.feeds[self.whole_of(r)], int(self.role_of[r])
            if receiver.kind in ("k", "v") and receiver.role != END:
                feeds[r, own] = True
            else:
                feeds[r, own, role] = True
        return feeds.reshape(self.n_receivers, -1)

    def _at_role(self, outputs: npt.NDArray[np.bool_], receiver: int) -> npt.NDArray[np.bool_]:
        """[..., outputs] -> [..., senders]: those at the role of a receiver, as a view."""
        return outputs[..., int(self.role_of[receiver]) :: self.n_roles]

    def join_heads(self, senders: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """[..., senders] -> with all heads of a layer where there is one of them, if heads share a norm: what scales
        one head's share is the total of all."""
        if not self.shape.heads_share_norm:
            return senders
        joined = senders.copy()
        for layer in range(self.shape.n_layers):
            heads = self.heads_of_layer(layer)
            joined[..., heads] = joined[..., heads].any(-1, keepdims=True)
        return joined

    # -- positions in the canonical order --------------------------------------------------------------------------

    @property
    def n_inputs(self) -> int:
        """Senders before layer 0: embed, and pos where it is split off."""
        return 2 if self.shape.split_position else 1

    @property
    def senders_per_layer(self) -> int:
        return self.shape.n_heads + int(self.shape.has_mlp)

    @property
    def receivers_per_layer(self) -> int:
        return (self.shape.n_heads + 2 * self.shape.n_kv_heads + int(self.shape.has_mlp)) * self.n_roles

    def heads_of_layer(self, layer: int) -> slice:
        """The senders that are heads of a layer."""
        first = self.n_inputs + layer * self.senders_per_layer
        return slice(first, first + self.shape.n_heads)

    def receivers_of_layer(self, layer: int) -> slice:
        """The receivers q, k, v and MLP of a layer, each at every role."""
        first = layer * self.receivers_per_layer
        return slice(first, first + self.receivers_per_layer)

    def _count_before(self, receiver: Receiver) -> int:
        if receiver.kind == "logits":
            return self.n_senders
        before = self.n_inputs + receiver.layer * self.senders_per_layer
        sees_heads = receiver.kind == "mlp" and not self.shape.is_parallel
        return before + (self.shape.n_heads if sees_heads else 0)

    def _index(self, index: dict[str, int], name: str, what: str) -> int:
        if name not in index:
            unsplit = "; its edges are not split by role: `positions` does that" * (
                "@" in name and not self.shape.roles
            )
            raise GraphMismatch(f"this graph has no {what} {name!r}; {self._names_in_words}{unsplit}")
        return index[name]

    @property
    def _names_in_words(self) -> str:
        shape, last = self.shape, self.shape.n_layers - 1
        head, shared = f"{last}.{shape.n_heads - 1}", f"{last}.{shape.n_kv_heads - 1}"
        mlps = f"MLPs mlp0 to mlp{last}, " if shape.has_mlp else ""
        pos = "pos, " if shape.split_position else ""
        roles = f"; every input but logits at a role, as 0.0.q@{END}: {', '.join(shape.roles)}" if shape.roles else ""
        return (
            f"it has heads layer.head, 0.0 to {head}, with inputs 0.0.q to {head}.q, 0.0.k to {shared}.k and 0.0.v to "
            f"{shared}.v, {mlps}embed, {pos}and logits{roles}"
        )


_any_of = functools.partial(np.logical_or.reduce, axis=-1, keepdims=True)


def _senders(shape: GraphShape) -> Iterator[Sender]:
    yield Sender(-1, "embed")
    if shape.split_position:
        yield Sender(-1, "pos")
    for layer in range(shape.n_layers):
        for head in range(shape.n_heads):
            yield Sender(layer, "head", head)
        if shape.has_mlp:
            yield Sender(layer, "mlp")


def _receivers(shape: GraphShape) -> Iterator[Receiver]:
    roles = shape.roles or ("",)
    for layer in range(shape.n_layers):
        for kind, count in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
            for head in range(count):
                yield from (Receiver(layer, kind, head, role) for role in roles)
        if shape.has_mlp:
            yield from (Receiver(layer, "mlp", role=role) for role in roles)
    yield Receiver(shape.n_layers, "logits")
