"""The shapes that programs are compiled for, and which of them a call uses. Numbers only; nothing runs here.

There are a few sizes of prefill chunks, a few numbers of rows of a decode step, and a few numbers of blocks that
attention reads. Each possible combination is a program, compiled before the first request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mistral_jax.model.kv_cache import KERNEL, LOOP, ReadPlan
from mistral_jax.model.table_kinds import BLOCK

DEFAULT_CHUNKS = (16, 64, 256)

SCORE_CHUNK = 64
"""Maximum tokens of a scored chunk: it needs memory for the logits of all its tokens."""


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """A chunk of a prompt to prefill: positions `start` to `start + count - 1`, padded to `size`."""

    start: int
    count: int
    size: int
    score: bool = False
    """Whether to compute the log-probabilities of the tokens from `start + 1` on, each given those before it."""
    embed: bool = False
    """Whether to pool the hidden states of its tokens."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """The shapes of a runner's programs. Made by `choose`."""

    length: int
    """Maximum tokens of a sequence."""
    chunks: tuple[int, ...]
    """Sizes of prefill chunks, ascending."""
    rows: tuple[int, ...]
    """Numbers of rows of a decode step, ascending."""
    blocks: tuple[int, ...]
    """Numbers of blocks that attention reads at once, ascending; empty: it reads the blocks in use."""
    kernel: bool = False
    """Whether attention reads the blocks in use by the kernel for GPUs; else in a loop. Only without `blocks`."""

    @classmethod
    def choose(
        cls,
        *,
        slots: int,
        length: int,
        blocks: int,
        on_cpu: bool,
        chunks: Sequence[int] = DEFAULT_CHUNKS,
        row_buckets: Sequence[int] | None = None,
        block_buckets: Sequence[int] | None = None,
        kernel: bool = False,
    ) -> Buckets:
        """Choose the buckets that the caller does not give, by platform.

        Args:
          blocks: number of blocks of the longest table.
          on_cpu: on a CPU a few numbers of rows are worth compiling: 2 and 8 rows run at memory bandwidth, 32 do not;
            the loop form of attention reads any number of blocks. A GPU runs all slots in every step, and reads powers
            of two of blocks, where the kernel for attention does not run.
          kernel: whether that kernel reads any number of blocks; not with `block_buckets`.

        Raises:
          ValueError: a chunk has fewer than two tokens.
        """
        sizes = tuple(sorted(set(chunks)))
        if sizes[0] < 2:
            raise ValueError("a prefill chunk needs at least two tokens: a single row has other bits on a CPU")
        rows = cache_rows(slots)
        if block_buckets is None:
            block_buckets = () if on_cpu or kernel else _doubled(min(2, blocks), blocks, 2)
        return cls(
            length=length,
            chunks=sizes,
            rows=tuple(row_buckets) if row_buckets else _doubled(2, rows, 4) if on_cpu else (rows,),
            blocks=tuple(block_buckets),
            kernel=kernel and not block_buckets,
        )

    @property
    def score(self) -> int:
        """The size of scored chunks."""
        return max((size for size in self.chunks if size <= SCORE_CHUNK), default=self.chunks[0])

    @property
    def embed(self) -> tuple[int, ...]:
        """The sizes of embedded chunks, ascending; few, as each is a program."""
        return tuple(sorted({self.score, self.chunks[-1]}))

    def prompt_chunks(self, prompt_length: int, *, start: int = 0) -> Iterator[PrefillChunk]:
        """The chunks of a prompt from token `start` on: all tokens but the last, which the first decode step runs.
        They depend only on these numbers."""
        return self._chunks(prompt_length - 1, self.chunks, start=start)

    def embedded_chunks(self, prompt_length: int) -> Iterator[PrefillChunk]:
        """The chunks of a prompt whose hidden states are wanted: all tokens."""
        return self._chunks(prompt_length, self.embed, embed=True)

    def _chunks(
        self, stop: int, sizes: Sequence[int], *, start: int = 0, embed: bool = False
    ) -> Iterator[PrefillChunk]:
        while start < stop:
            left = stop - start
            size = next((size for size in sizes if size >= left), sizes[-1])
            yield PrefillChunk(start, min(left, size), size, embed=embed)
            start += size

    def scored_chunks(self, prompt_length: int) -> Iterator[PrefillChunk]:
        """The chunks of a prompt whose log-probabilities are wanted."""
        for start in range(0, prompt_length - 1, self.score):
            yield PrefillChunk(start, min(prompt_length - 1 - start, self.score), self.score, score=True)

    def rows_for(self, active: Sequence[int]) -> int:
        """Number of rows of a step for the slots in `active`."""
        return next(size for size in self.rows if size > max(active))

    def plan(self, length: int) -> ReadPlan:
        """How attention reads rows that hold at most `length` tokens."""
        if not self.blocks:
            return KERNEL if self.kernel else LOOP
        needed = -(-min(length, self.length) // BLOCK)
        return ReadPlan(next((blocks for blocks in self.blocks if blocks >= needed), self.blocks[-1]))

    @property
    def lengths(self) -> tuple[int, ...]:
        """A length for each plan."""
        return tuple(blocks * BLOCK for blocks in self.blocks) or (1,)


def chunk_sizes(chunks: Sequence[int], length: int) -> tuple[int, ...]:
    """Sizes of chunks, ascending, capped at `length` rounded up to a multiple of 16."""
    return tuple(sorted({min(size, -(-length // 16) * 16) for size in chunks}))


def cache_rows(slots: int) -> int:
    """Number of rows of a cache for `slots` slots: at least two, as a decode step runs at least two rows (see
    `mistral_jax.quant.dot.dot`). An idle second slot only costs memory."""
    return max(slots, 2)


def cache_sizes(*, slots: int, length: int, chunks: Sequence[int]) -> dict[str, int]:
    """The `slots`, `length` and `chunk` with which a runner of these sizes allocates its caches."""
    return {"slots": cache_rows(slots), "length": length, "chunk": chunk_sizes(chunks, length)[-1]}


def _doubled(first: int, last: int, factor: int) -> tuple[int, ...]:
    buckets = [first]
    while buckets[-1] < last:
        buckets.append(min(buckets[-1] * factor, last))
    return tuple(buckets)
