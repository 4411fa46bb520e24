from typing import Any

import pytest
import torch
from torch import nn

from chogori.errors import ConfigError
from chogori.optim.layout import MatrixLayout
from chogori.optim.parameters import ParameterRole, assign_roles, describe_roles, role_by_name
from tests.optim import small_models


def by_name(model: nn.Module, **options: Any) -> dict[str, ParameterRole]:
    return {role.name: role for role in assign_roles(model, **options)}


def test_a_deepseek_v3_model_is_divided_as_the_report_says() -> None:
    roles = by_name(small_models.deepseek_v3())
    layer = "model.layers.1"
    muon = {name for name, role in roles.items() if role.update == "muon"}
    assert {
        f"{layer}.self_attn.q_a_proj.weight",
        f"{layer}.self_attn.kv_a_proj_with_mqa.weight",
        f"{layer}.self_attn.kv_b_proj.weight",
        f"{layer}.mlp.gate.weight",
        f"{layer}.mlp.experts.gate_up_proj",
        f"{layer}.mlp.shared_experts.down_proj.weight",
    } <= muon
    assert not any("norm" in name or "embed" in name or "lm_head" in name for name in muon)
    assert roles[f"{layer}.mlp.experts.gate_up_proj"].layout == MatrixLayout(row_splits=(16, 16))
    assert roles["lm_head.weight"].decayed
    assert not roles["model.norm.weight"].decayed
    assert sum(role.parameter.numel() for role in roles.values()) == sum(
        parameter.numel() for parameter in small_models.deepseek_v3().parameters()
    )


def test_experts_apart_gate_up_and_down_are_matrices_of_their_own() -> None:
    roles = by_name(small_models.deepseek_v3())
    gate_up = roles["model.layers.1.mlp.experts.gate_up_proj"]
    assert gate_up.layout.count(gate_up.parameter.shape) == 8
    assert [tuple(view.shape) for view in gate_up.layout.matrices(gate_up.parameter.detach())] == [(4, 16, 32)] * 2


def test_fused_experts_of_an_unknown_layout_are_left_whole() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(2, 6, 8))  # [E, D, 2F], as gpt-oss stores it
            self.down_proj = nn.Parameter(torch.zeros(2, 4, 6))

    roles = by_name(Experts())
    assert roles["gate_up_proj"].layout == MatrixLayout()
    assert roles["gate_up_proj"].layout.count((2, 6, 8)) == 2


def test_tied_weights_are_one_parameter_and_an_embedding() -> None:
    model = small_models.llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    roles = by_name(model)
    assert "lm_head.weight" not in roles
    assert roles["model.embed_tokens.weight"].update == "adamw"


def test_convolutions_are_flattened_and_degenerate_matrices_are_vectors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 1), nn.Linear(8, 8))
    roles = by_name(model)
    assert roles["0.weight"].layout == MatrixLayout(flatten=True)
    assert (roles["1.weight"].update, roles["1.weight"].reason) == ("adamw", "vector")
    assert (roles["2.weight"].update, roles["2.bias"].update) == ("muon", "adamw")


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    assert set(by_name(model)) == {"1.weight", "1.bias"}
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameters; did you freeze all of it"):
        assign_roles(model)


@pytest.mark.parametrize(
    ("name", "shape", "update", "reason"),
    [
        ("transformer.wte.weight", (50, 8), "adamw", "embedding, by its name"),
        ("model.embed_tokens.weight", (50, 8), "adamw", "embedding, by its name"),
        ("pos_embed", (1, 16, 8), "adamw", "embedding, by its name"),
        ("lm_head.weight", (50, 8), "adamw", "output head, by its name"),
        ("output.weight", (50, 8), "adamw", "output head, by its name"),
        ("blocks.0.attention.output.dense.weight", (8, 8), "muon", "matrix"),
        ("layers.0.experts.up_proj", (4, 16, 8), "muon", "stack of matrices"),
        ("layers.0.attn.q_proj.bias", (8,), "adamw", "vector"),
        ("layers.0.gate.weight", (1, 8), "adamw", "vector"),
    ],
)
def test_names_alone_decide_where_there_is_no_model(
    name: str, shape: tuple[int, ...], update: str, reason: str
) -> None:
    role = role_by_name(name, nn.Parameter(torch.zeros(shape)))
    assert (role.update, role.reason) == (update, reason)


def test_per_head_cuts_attention_projections() -> None:
    roles = by_name(small_models.deepseek_v3(heads=4, nope=8, rope=4, value=6), per_head=True)
    attention = "model.layers.0.self_attn"
    assert roles[f"{attention}.q_b_proj.weight"].layout == MatrixLayout(row_splits=(12,) * 4)
    assert roles[f"{attention}.kv_b_proj.weight"].layout == MatrixLayout(row_splits=(14,) * 4)
    assert roles[f"{attention}.o_proj.weight"].layout == MatrixLayout(column_splits=(6,) * 4)
    assert roles[f"{attention}.q_a_proj.weight"].layout == MatrixLayout()
    grouped = by_name(small_models.llama(heads=4, key_heads=2, head_dim=8), per_head=True)
    assert grouped["model.layers.0.self_attn.q_proj.weight"].layout == MatrixLayout(row_splits=(8,) * 4)
    assert grouped["model.layers.0.self_attn.k_proj.weight"].layout == MatrixLayout(row_splits=(8,) * 2)


def test_the_table_is_as_written_down() -> None:
    assert describe_roles(assign_roles(small_models.deepseek_v3(layers=3))).splitlines() == GOLDEN.strip().splitlines()


GOLDEN = """
update  decay  parameters                                              matrices     numbers  why
adamw   yes    model.embed_tokens.weight                               -            1,536    embedding
muon    yes    model.layers.{0-2}.self_attn.q_a_proj.weight            3 of 16×32   1,536    matrix
adamw   no     model.layers.{0-2}.self_attn.q_a_layernorm.weight       -            48       vector
muon    yes    model.layers.{0-2}.self_attn.q_b_proj.weight            3 of 48×16   2,304    matrix
muon    yes    model.layers.{0-2}.self_attn.kv_a_proj_with_mqa.weight  3 of 20×32   1,920    matrix
adamw   no     model.layers.{0-2}.self_attn.kv_a_layernorm.weight      -            48       vector
muon    yes    model.layers.{0-2}.self_attn.kv_b_proj.weight           3 of 56×16   2,688    matrix
muon    yes    model.layers.{0-2}.self_attn.o_proj.weight              3 of 32×24   2,304    matrix
muon    yes    model.layers.0.mlp.gate_proj.weight                     1 of 48×32   1,536    matrix
muon    yes    model.layers.0.mlp.up_proj.weight                       1 of 48×32   1,536    matrix
muon    yes    model.layers.0.mlp.down_proj.weight                     1 of 32×48   1,536    matrix
adamw   no     model.layers.{0-2}.input_layernorm.weight               -            96       vector
adamw   no     model.layers.{0-2}.post_attention_layernorm.weight      -            96       vector
muon    yes    model.layers.{1-2}.mlp.experts.gate_up_proj             16 of 16×32  8,192    gate and up apart
muon    yes    model.layers.{1-2}.mlp.experts.down_proj                8 of 32×16   4,096    stack of matrices
muon    yes    model.layers.{1-2}.mlp.gate.weight                      2 of 4×32    256      matrix
muon    yes    model.layers.{1-2}.mlp.shared_experts.gate_proj.weight  2 of 16×32   1,024    matrix
muon    yes    model.layers.{1-2}.mlp.shared_experts.up_proj.weight    2 of 16×32   1,024    matrix
muon    yes    model.layers.{1-2}.mlp.shared_experts.down_proj.weight  2 of 32×16   1,024    matrix
adamw   no     model.norm.weight                                       -            32       vector
adamw   yes    lm_head.weight                                          -            1,536    output head
muon: 30 parameters, 50 matrices, 30,976 numbers
adamw: 15 parameters, 3,392 numbers
"""
