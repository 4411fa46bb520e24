"""The layout of a step: every row at its place, whatever order answers stand in."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from chogori.engine.step_batch import SPAN_TOKENS, DecodeRow, PromptPiece, StepBatch

CPU = torch.device("cpu")
POSITIONS = st.integers(0, 3 * SPAN_TOKENS - 1)


def slots(answer: int, num_tokens: int) -> torch.Tensor:
    """Cache rows of an answer, none of which is another's, padded with row 0 to whole spans."""
    padded = -(-num_tokens // SPAN_TOKENS) * SPAN_TOKENS
    rows = torch.zeros(padded, dtype=torch.int64)
    rows[:num_tokens] = torch.arange(num_tokens).flip(0) + 1 + 10_000 * (answer + 1)
    return rows


def row(answer: int, position: int, extra: int = 0) -> DecodeRow:
    return DecodeRow(token=answer, position=position, slots_S=slots(answer, position + 1 + extra))


def batch_of(decode: list[DecodeRow], pieces: list[PromptPiece]) -> StepBatch:
    return StepBatch.of(decode, pieces, dtype=torch.bfloat16, device=CPU)


@given(
    decoding=st.lists(st.tuples(POSITIONS, st.integers(0, SPAN_TOKENS)), max_size=12),
    reading=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40), st.booleans(), st.booleans()), max_size=4),
)
def test_every_row_is_laid_out_once_with_its_own_token_position_and_slot(
    decoding: list[tuple[int, int]], reading: list[tuple[int, int, bool, bool]]
) -> None:
    if not decoding and not reading:
        return
    decode = [row(i, position, extra) for i, (position, extra) in enumerate(decoding)]
    pieces = [
        PromptPiece(
            tokens=list(range(1000 * i + 1000, 1000 * i + 1000 + count)),
            start=start,
            slots_S=slots(100 + i, start + count),
            wants_logits=wants,
            wants_every_row=every,
        )
        for i, (start, count, wants, every) in enumerate(reading)
    ]
    batch = batch_of(decode, pieces)
    found = list(zip(batch.tokens_N.tolist(), batch.positions_N.tolist(), batch.slots_N.tolist(), strict=True))
    expected_decode = [(r.token, r.position, int(r.slots_S[r.position])) for r in decode]
    expected_pieces = [
        (token, piece.start + i, int(piece.slots_S[piece.start + i]))
        for piece in pieces
        for i, token in enumerate(piece.tokens)
    ]
    assert sorted(found[: len(decode)]) == sorted(expected_decode)
    assert found[len(decode) :] == expected_pieces

    # Logits are of the decoding rows as they were given, then of the last tokens of prompts, or of all their tokens.
    wanted = [found[i] for i in batch.logit_rows_R.tolist()]
    ends: list[tuple[int, int, int]] = []
    for piece in pieces:
        rows = [(token, piece.start + i, int(piece.slots_S[piece.start + i])) for i, token in enumerate(piece.tokens)]
        ends += rows if piece.wants_every_row else rows[-1:] if piece.wants_logits else []
    assert wanted == expected_decode + ends

    # Pieces keep their order and touch.
    place = len(decode)
    for (rows, piece), given_piece in zip(batch.pieces, pieces, strict=True):
        assert piece is given_piece
        assert (rows.start, rows.stop) == (place, place + len(piece.tokens))
        place = rows.stop


@given(positions=st.lists(POSITIONS, min_size=1, max_size=12))
def test_groups_hold_the_rows_of_one_padded_length_and_hide_what_lies_behind_each(positions: list[int]) -> None:
    decode = [row(i, position) for i, position in enumerate(positions)]
    batch = batch_of(decode, [])
    place, spans = 0, list[int]()
    for group in batch.groups:
        assert group.rows.start == place
        place = group.rows.stop
        num_rows, span = group.slots_BS.shape
        assert num_rows == group.rows.stop - group.rows.start
        assert group.padding_B1S.shape == (num_rows, 1, span)
        assert group.padding_B1S.dtype == torch.bfloat16
        spans.append(span)
        for i in range(num_rows):
            answer, position = int(batch.tokens_N[group.rows.start + i]), int(batch.positions_N[group.rows.start + i])
            # The least whole number of spans: what a row is padded to may depend on nothing but its own length.
            assert span == -(-(position + 1) // SPAN_TOKENS) * SPAN_TOKENS
            assert torch.equal(group.slots_BS[i], decode[answer].slots_S[:span])
            assert (group.padding_B1S[i, 0, : position + 1] == 0).all()
            assert (group.padding_B1S[i, 0, position + 1 :] == float("-inf")).all()
    assert place == len(positions)
    assert len(set(spans)) == len(spans)


def test_a_step_without_ended_prompts_wants_no_logits() -> None:
    piece = PromptPiece(tokens=[5, 6], start=0, slots_S=slots(0, 2), wants_logits=False)
    batch = batch_of([], [piece])
    assert batch.logit_rows_R.shape == (0,)
    assert batch.groups == []
