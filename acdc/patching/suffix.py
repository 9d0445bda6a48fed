"""What becomes of the metric when one receiver of a standing circuit reads something else: many such rows at once.

A search that walks from the output to the input has three gifts at receiver r:
- nothing before r was touched, so every sender there keeps one value, computed once;
- after r the circuit is sparse: only nodes on a kept path from r to the metric can change, and only at the positions
  that the metric sees through kept edges (`needs`);
- many candidates differ in what r reads and in nothing else, so they are rows of one batch.

So a row is run through r's node and from there, along kept edges, through the live nodes after it. What a receiver
there reads is the sum of what it reads from unchanged senders, formed once for all rows, and of what the changed ones
write in the row: the same sum as in patching/masked.py, without its zeros. (Adding changes to the standing input would
be cheaper still, and wrong by rounding where little is left: a norm blows up what remains of a difference.)

Where edges are split by position role, nodes are run as ever; only what a kept edge brings, it brings at the tokens of
its roles. Receivers are those of the whole graph but where a part of one is decided on.

Shapes: `rows` are candidate circuits, B prompts of the batch, n the positions of a range (`Positions`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.graph import BoolMatrix
from acdc.models.transformer import Transformer
from acdc.patching.circuits import Prompts
from acdc.patching.needs import NARROW, WIDE, Needs, Positions
from acdc.patching.roles import TokensByRole, at_tokens
from acdc.patching.standing import BLOCK, Standing

DENSE = 0.15  # of the edges between changed senders and receivers: where more are kept, a product adds up faster


@dataclass(frozen=True)
class _Arrival:
    """Receivers that read something else now, all over one range: x [receiver, rows, B, n, d]."""

    level: int
    receivers: list[int]
    x: Tensor


class Rooms:
    """Room for what the nodes of rows write, one per range. All batches share it: one of them runs at a time."""

    def __init__(self, t: Transformer) -> None:
        self._t = t
        self._of: dict[int, Tensor] = {}

    def take(self, level: int, shape: tuple[int, ...]) -> Tensor:
        """Uninitialised."""
        size = math.prod(shape)
        if level not in self._of or len(self._of[level]) < size:
            self._of.pop(level, None)  # before the larger one is asked for
            self._of[level] = torch.empty(size, dtype=self._t.dtype, device=self._t.device)
        return self._of[level][:size].view(shape)

    @property
    def n_bytes(self) -> int:
        return sum(room.nbytes for room in self._of.values())

    def release(self) -> None:
        self._of.clear()


class Suffix:
    """The standing circuit on one batch, and rows that differ from it at one receiver.

    kept: its edges [senders, receivers]. kept, needs and rooms are shared with the search, which decides receiver by
    receiver.
    """

    def __init__(
        self, t: Transformer, prompts: Prompts, at: Positions, kept: BoolMatrix, needs: Needs, rooms: Rooms
    ) -> None:
        self.t, self.graph = t, t.graph.whole
        self.batch, self.at, self.kept, self.needs, self.rooms = prompts.batch, at, kept, needs, rooms
        self.standing = Standing(t, prompts, at, kept)
        self.node_runs = 0  # nodes computed again, each row counted
        self._by_role: dict[int, TokensByRole] = {}
        self._written: dict[int, Tensor] = {}  # out - a of needed senders in the standing circuit, [B, n, d] each
        self.unchanged: dict[int, Tensor] = {}  # by receiver, what it reads of senders that no row changes

    def bytes_per_row(self, receiver: int) -> int:
        """About the most a row holds: what live nodes write (last positions twice, where a product takes those alone),
        what one layer reads and writes, an MLP's hidden state; keys and values of every head at all positions,
        attention weights."""
        t, graph, widest = self.t, self.graph, self.needs.of_receiver(receiver)
        after = range(int(t.graph.n_senders_before[receiver]), graph.n_senders)
        levels = [min(self.needs.of_sender(sender), widest) for sender in after]
        streams = sum(self.at.count(level) + self.at.count(NARROW) for level in levels if level)
        n = self.at.count(max(widest, NARROW))
        one_layer = (graph.receivers_per_layer + graph.senders_per_layer + 16) * n * t.d_model
        attention = 2 * (t.n_heads + t.n_kv_heads) * self.at.end * t.d_head + 2 * t.n_heads * n * self.at.end
        return (streams * t.d_model + one_layer + attention) * self.batch.n_rows * t.dtype.itemsize

    def bytes_held(self, receiver: int) -> int:
        """By the standing circuit, and by what is remembered during a visit of the receiver."""
        written = sum(value.nbytes for value in self._written.values())
        after = range(self.t.graph.whole_of(receiver), self.graph.n_receivers)
        unchanged = sum(self.at.count(level) for r in after if (level := self.needs.of_whole(r)))
        token = self.batch.n_rows * self.t.d_model * self.t.dtype.itemsize
        return self.standing.n_bytes + written + unchanged * token

    @torch.no_grad()
    def run(self, receiver: int, x: Tensor, *, commit: bool = False) -> Tensor:
        """What the metric reads when `receiver`, or a part of it, reads x: last residual [rows, read, d].

        x: [rows, B, n, d], at the positions where that is needed. commit: make the one row the standing one.
        """
        graph, t = self.graph, self.t
        row = _Rows(self, receiver, x)
        for index in range(t.graph.receivers[receiver].layer, t.n_layers):
            reads = graph.receivers_of_layer(index)
            n_attention = t.n_heads + 2 * t.n_kv_heads
            mlp = range(reads.start + n_attention, reads.stop)
            into_parallel = row.arriving(mlp) if t.is_parallel else []
            if arrivals := row.arriving(range(reads.start, reads.start + n_attention)):
                self._attention(index, arrivals, row, commit)
            for arrival in into_parallel if t.is_parallel else row.arriving(mlp):
                self._mlp(index, arrival, row)
        last = graph.n_receivers - 1
        (arrival,) = row.arriving(range(last, last + 1), even_unchanged=True)
        if commit:
            self._written.update(row.written())
            self.unchanged.clear()
        residual = arrival.x[0].expand(len(x), -1, -1, -1)
        return self.batch.take(residual, self.at.narrow)

    def room(self, receiver: int, level: int, n_rows: int) -> Tensor:
        """Room for what senders after the receiver write over a range, used by each run: [sender, rows, B, n, d]"""
        after = range(int(self.t.graph.n_senders_before[receiver]), self.t.graph.n_senders)
        is_possible = level <= self.needs.of_receiver(receiver)
        most = sum(self.needs.of_sender(sender) >= level for sender in after) if is_possible else 0
        return self.rooms.take(level, (most, n_rows, self.batch.n_rows, self.at.count(level), self.t.d_model))

    def leave(self) -> None:
        """The receiver that rows differed at changes, or the kept edges do."""
        self.unchanged.clear()

    def written(self, senders: Sequence[int], level: int) -> Tensor:
        """out - a of senders in the standing circuit: [sender, B, n, d]; 0 outside the range where one is needed."""
        found = []
        for sender in senders:
            need = self.needs.of_sender(sender)
            value = self._written.get(sender)
            if value is None or value.shape[1] < self.at.count(min(level, need)):
                value = self.standing.differences([sender], need)[0]
                self._written[sender] = value
            missing = self.at.count(level) - value.shape[1]
            found.append(F.pad(value, (0, 0, missing, 0)) if missing > 0 else value[:, -self.at.count(level) :])
        return torch.stack(found)

    def brought(self, senders: Sequence[int], kept: BoolMatrix, level: int) -> Tensor:
        """What senders bring through edges kept [sender, role]: [sender, B, n, d]"""
        written = self.written(senders, level)
        return written if kept.all() else written.mul_(self.at_tokens(kept, level))

    # -- roles ---------------------------------------------------------------------------------------------------------

    def kept_into(self, receivers: Sequence[int]) -> BoolMatrix:
        """[sender, receiver, role]: the edges kept into receivers of the whole graph."""
        kept: BoolMatrix = self.kept[:, self.t.graph.parts_of[receivers]]
        return kept

    def at_tokens(self, kept: BoolMatrix, level: int) -> Tensor:
        """1 at every token whose role is kept: [..., role] -> [..., B, n, 1]"""
        assert self.standing.roles is not None  # with one role, what is kept at all is kept everywhere
        return at_tokens(kept, self.standing.roles[:, self.at.first(level) :], self.standing.a_z[0])

    def by_role(self, level: int) -> TokensByRole | None:
        """The tokens of a range."""
        roles = self.standing.roles
        if roles is not None and level not in self._by_role:
            self._by_role[level] = TokensByRole(roles[:, self.at.first(level) :], self.t.graph.n_roles)
        return self._by_role.get(level)

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _mlp(self, index: int, arrival: _Arrival, row: _Rows) -> None:
        mlp = self.t.layers[index].mlp
        assert mlp is not None
        out = mlp(arrival.x[0])  # [rows, B, n, d]
        self.node_runs += len(out)
        off = out - self._at(self.standing.a_mlp[index], arrival.level)
        row.add([self.graph.heads_of_layer(index).stop], arrival.level, off.unsqueeze(0))

    def _attention(self, index: int, arrivals: list[_Arrival], row: _Rows, commit: bool) -> None:
        reads = [(arrival, self._project(index, arrival)) for arrival in arrivals]
        heads = self._heads_touched(index, arrivals)
        for level in (NARROW, WIDE):
            chosen = sorted(head for head, at in heads.items() if at == level)
            if chosen:
                self._attend(index, level, chosen, reads, row, commit)
        if commit:
            for arrival, values in reads:
                self._commit_reads(index, arrival, values)

    def _heads_touched(self, index: int, arrivals: list[_Arrival]) -> dict[int, int]:
        """Heads whose output changes where it is needed, and over which range."""
        levels: dict[int, int] = {}
        shape = self.graph.shape
        group = shape.n_heads // shape.n_kv_heads
        for arrival in arrivals:
            for receiver in arrival.receivers:
                r = self.graph.receivers[receiver]
                reading = [r.head] if r.kind == "q" else range(r.head * group, (r.head + 1) * group)
                for head in reading:
                    levels[head] = max(levels.get(head, 0), arrival.level)
        if shape.heads_share_norm:  # what moves one head's share moves those of all
            levels = dict.fromkeys(levels, max(levels.values()))
        needed = {head: min(level, self.needs.of_head(index, head)) for head, level in levels.items()}
        return {head: level for head, level in needed.items() if level}

    def _project(self, index: int, arrival: _Arrival) -> Tensor:
        """Queries, keys and values of the arrival's receivers: [receiver, rows, B, n, e], turned."""
        t, layer = self.t, self.t.layers[index]
        own = [receiver - self.graph.receivers_of_layer(index).start for receiver in arrival.receivers]
        flat = arrival.x.flatten(1, 3)
        projected = torch.bmm(flat, layer.w_read[own].transpose(1, 2)).mul_(layer.read_scale(flat))
        values: Tensor = projected.add_(layer.b_read[own].unsqueeze(1)).unflatten(1, arrival.x.shape[1:4])
        kinds = [self.graph.receivers[receiver].kind for receiver in arrival.receivers]
        first = self.at.first(arrival.level)
        for kind, norm in (("q", layer.head_norm_q), ("k", layer.head_norm_k)):
            places = [place for place, k in enumerate(kinds) if k == kind]
            if places:
                values[places] = t.turn(layer, norm, values[places], self.standing.rope, first)
        return values

    def _attend(
        self,
        index: int,
        level: int,
        heads: list[int],
        reads: list[tuple[_Arrival, Tensor]],
        row: _Rows,
        commit: bool,
    ) -> None:
        """Run heads over a range with what they read now, and note what they write."""
        t, standing, layer = self.t, self.standing, self.t.layers[index]
        kv = t.kv_of(heads)
        groups = sorted(set(kv))
        q = self._laid("q", heads, reads, standing.q[index], self.at.wide, self.at.first(level), row.n)
        k = self._laid("k", groups, reads, standing.k[index], 0, 0, row.n)
        v = self._laid("v", groups, reads, standing.v[index], 0, 0, row.n)
        if len(groups) < len(heads):
            of_head = [groups.index(group) for group in kv]
            k, v = k[of_head], v[of_head]
        z = t.attend_late(layer, *(x.flatten(1, 2) for x in (q, k, v)))  # heads in the place of a batch
        z = z.unflatten(1, (row.n, self.batch.n_rows))  # [head, rows, B, n, e]
        self.node_runs += z.shape[0] * row.n
        if commit:
            self._at(standing.z_raw[index], level)[heads] = z[:, 0]
        if layer.share_scale is not None:
            everyone = self._at(standing.z_raw[index], level).unsqueeze(1).repeat(1, row.n, 1, 1, 1)
            everyone[heads] = z
            heads, z = list(range(t.n_heads)), standing.share(layer, everyone)
        off = z - self._at(standing.a_z[index], level)[heads].unsqueeze(1)
        out = torch.bmm(off.flatten(1, 3), layer.w_out[heads]).unflatten(1, off.shape[1:4])
        first = self.graph.heads_of_layer(index).start
        row.add([first + head for head in heads], level, out)

    def _laid(
        self,
        kind: str,
        wanted: Sequence[int],
        reads: list[tuple[_Arrival, Tensor]],
        standing: Tensor,
        standing_from: int,
        first: int,
        n_rows: int,
    ) -> Tensor:
        """The standing q, k or v of the heads wanted from position `first` on, with what is new laid over them:
        [head, rows, B, n, e]. standing: [head, B, n, e], from position `standing_from` on."""
        receivers = self.graph.receivers
        new = {
            receivers[receiver].head: (arrival.level, values[place])
            for arrival, values in reads
            for place, receiver in enumerate(arrival.receivers)
            if receivers[receiver].kind == kind
        }
        below = standing[list(wanted)][:, None, :, first - standing_from :]
        if not any(head in new for head in wanted):
            return below.expand(-1, n_rows, -1, -1, -1)
        laid = below.repeat(1, n_rows, 1, 1, 1)
        for place, head in enumerate(wanted):
            if head in new:
                level, values = new[head]
                start = self.at.first(level)
                laid[place][:, :, max(start - first, 0) :] = values[:, :, max(first - start, 0) :]
        return laid

    def _commit_reads(self, index: int, arrival: _Arrival, values: Tensor) -> None:
        first = self.at.first(arrival.level)
        standing = {
            "q": (self.standing.q[index], self.at.wide),
            "k": (self.standing.k[index], 0),
            "v": (self.standing.v[index], 0),
        }
        for receiver, new in zip(arrival.receivers, values[:, 0], strict=True):
            r = self.graph.receivers[receiver]
            tensor, start = standing[r.kind]
            tensor[r.head, :, first - start :] = new

    def _at(self, tensor: Tensor, level: int) -> Tensor:
        """[..., positions from `wide` on (or one for all), d] -> those of the range."""
        return tensor[..., self.at.first(level) - self.at.wide :, :] if tensor.shape[-2] > 1 else tensor


class _Rows:
    """What the changed nodes write in each row, sender by sender, and how that arrives at the receivers after them."""

    def __init__(self, suffix: Suffix, receiver: int, x: Tensor) -> None:
        self.suffix, self.needs, self.n = suffix, suffix.needs, len(x)
        self.start = suffix.t.graph.whole_of(receiver), suffix.needs.of_receiver(receiver), x
        self.senders: dict[int, list[int]] = {NARROW: [], WIDE: []}
        self.writes = {level: suffix.room(receiver, level, self.n) for level in (NARROW, WIDE)}

    def add(self, senders: Sequence[int], level: int, off: Tensor) -> None:
        """off: out - a, [sender, rows, B, n, d]"""
        for sender, write in zip(senders, off, strict=True):
            needed = min(level, self.needs.of_sender(sender))
            if needed:
                self.writes[needed][len(self.senders[needed])] = self._from(write, level, needed)
                self.senders[needed].append(sender)

    def written(self) -> dict[int, Tensor]:
        """Of the one row, as the standing circuit holds it; where part of a range changed, with the rest as it was."""
        found = {}
        for level in (NARROW, WIDE):
            for sender, write in zip(self.senders[level], self.writes[level], strict=False):
                need = self.needs.of_sender(sender)
                whole = self.suffix.written([sender], need)[0] if need > level else torch.empty_like(write[0])
                self._from(whole, need, level).copy_(write[0])
                found[sender] = whole
        return found

    def arriving(self, receivers: Iterable[int], *, even_unchanged: bool = False) -> list[_Arrival]:
        """Those of the receivers that read something else now, by range."""
        start, level_of_start, x = self.start
        levels = {}
        arrivals = []
        for receiver in receivers:
            if receiver == start:
                arrivals.append(_Arrival(level_of_start, [start], x.unsqueeze(0)))
                continue
            need = self.needs.of_whole(receiver)
            level = need if even_unchanged or not need else min(self._reach(receiver), need)
            if level:
                levels[receiver] = level
        for level in (NARROW, WIDE):
            chosen = [receiver for receiver, at in levels.items() if at == level]
            if chosen:
                arrivals.append(_Arrival(level, chosen, self._mix(chosen, level)))
        return arrivals

    def _reach(self, receiver: int) -> int:
        """The widest range over which a kept edge brings a change."""
        kept = self.suffix.kept_into([receiver])
        for level in (WIDE, NARROW):
            if kept[self.senders[level]].any():
                return level
        return 0

    def _mix(self, receivers: list[int], level: int) -> Tensor:
        """What receivers read: [receiver, rows, B, n, d]"""
        below = torch.stack([self._of_unchanged(receiver, level) for receiver in receivers]).unsqueeze(1)
        x: Tensor | None = None
        for of in (WIDE, NARROW):
            sums = self._sum(receivers, of, within := min(of, level))
            if sums is not None and x is None and within == level:
                x = sums.add_(below)
            elif sums is not None:
                x = below.repeat(1, self.n, 1, 1, 1) if x is None else x
                self._from(x, level, within).add_(sums)
        return below.repeat(1, self.n, 1, 1, 1) if x is None else x

    def _sum(self, receivers: list[int], of: int, within: int) -> Tensor | None:
        """What the senders changed over a range bring, at a part of it: [receiver, rows, B, n, d]"""
        kept = self.suffix.kept_into(receivers)[self.senders[of]]  # [sender, receiver, role]
        if not kept.any():
            return None
        writes = self._from(self.writes[of][: len(kept)], of, within)
        if self._adds_by_product(kept.mean()):
            return self._product(kept, writes, within)
        found = writes.new_zeros(len(receivers), *writes.shape[1:])
        for into, of_receiver in zip(found, kept.swapaxes(0, 1), strict=True):
            for place in np.flatnonzero(of_receiver.any(1)):
                if of_receiver[place].all():
                    into += writes[place]
                else:
                    into.addcmul_(writes[place], self.suffix.at_tokens(of_receiver[place], within))
        return found

    def _product(self, kept: BoolMatrix, writes: Tensor, level: int) -> Tensor:
        """kept: [sender, receiver, role], writes: [sender, rows, B, n, d] -> their sum by receiver."""
        weights = torch.from_numpy(kept.T.astype(np.float32)).to(writes)  # [role, receiver, sender]
        by_role = self.suffix.by_role(level)
        if by_role is None:
            found: Tensor = (weights[0] @ writes.flatten(1)).unflatten(1, writes.shape[1:])
            return found
        tokens = by_role.sort(writes)  # [sender, rows, token, d]
        sums = [
            (of_role @ tokens[:, :, chosen].flatten(1)).unflatten(1, (len(tokens[0]), -1, writes.shape[-1]))
            for of_role, chosen in zip(weights, by_role.slices, strict=True)
        ]
        in_place: Tensor = by_role.unsort(torch.cat(sums, 2)).unflatten(2, writes.shape[2:4])
        return in_place

    def _adds_by_product(self, share: float) -> bool:
        """Of the edges, kept. One by one, half precision would round at each of them, and a GPU start a kernel."""
        t = self.suffix.t
        return share > DENSE or t.device.type != "cpu" or t.dtype.itemsize < torch.float32.itemsize

    def _of_unchanged(self, receiver: int, level: int) -> Tensor:
        """What a receiver reads when all edges from changed senders are taken away, [B, n, d]. Senders changed over the
        narrow range alone still bring what they bring elsewhere."""
        suffix = self.suffix
        found = suffix.unchanged.get(receiver)
        if found is not None:
            return found
        kept = suffix.kept_into([receiver])[:, 0].copy()  # [sender, role]
        narrowly = [s for s in self.senders[NARROW] if kept[s].any()] if level == WIDE else []
        of_narrowly = kept[narrowly]
        kept[[*self.senders[NARROW], *self.senders[WIDE]]] = False
        base = suffix.standing.base(receiver, level)
        shape = suffix.batch.n_rows, suffix.at.count(level), suffix.t.d_model
        found = base.expand(shape).clone()
        senders = np.flatnonzero(kept.any(1)).tolist()
        for first in range(0, len(senders), BLOCK):
            block = senders[first : first + BLOCK]
            found += suffix.brought(block, kept[block], level).sum(0)
        if narrowly:
            wide = suffix.brought(narrowly, of_narrowly, WIDE).sum(0)
            n = suffix.at.narrow - suffix.at.wide
            found[:, :n] += wide[:, :n]
        suffix.unchanged[receiver] = found
        return found

    def _from(self, tensor: Tensor, level: int, part: int) -> Tensor:
        """[..., positions of a range, d] -> those of a part of it."""
        at = self.suffix.at
        return tensor[..., at.first(part) - at.first(level) :, :]
