"""How the matrices of a model are stored in a GGUF file, by one of llama.cpp's recipes."""

from __future__ import annotations

from llmbench.errors import UnsupportedError
from llmbench.sizing.op import Op
from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import AttentionKind, branches
from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.formats import Chosen, Storage, StoredTensor
from llmbench.spec.weights.gguf import BLOCKS, BlockType, Gguf, Place, TensorRole, block_type, fitted

__all__ = ["GgufChoices"]


class GgufChoices:
    """The choices of one recipe for one model.

    Raises UnsupportedError for Falcon, for which llama.cpp has choices of its own.
    """

    def __init__(self, spec: ModelSpec, gguf: Gguf, chosen: Chosen) -> None:
        if spec.family == "falcon":
            raise UnsupportedError(f"{spec.name}: llmbench does not know llama.cpp's GGUF recipes for Falcon")
        from llmbench.spec.weights.modules import ModuleNames  # loads the tables of all families

        self.spec, self.gguf = spec, gguf
        self.tables: BlockType | None = "Q8_0" if chosen.parameters.get("q8_tables") else None
        self.imatrix = bool(chosen.parameters.get("imatrix"))
        self.router_f16 = bool(chosen.parameters["router_f16"])
        modules = ModuleNames(spec)
        query, value = (modules.names_of(f"layers.{{}}.attention.{letter}_proj", 0)[0] for letter in "qv")
        self.fused = query == value
        mixers = [list(branches(spec.layers[name].mixer)) for name in spec.order]
        attention = [index for index, own in enumerate(mixers) if any(isinstance(m, AttentionKind) for m in own)]
        self.order = {layer: place for place, layer in enumerate(attention)}
        moe = [layer.ffn for layer in spec.layers.values() if isinstance(layer.ffn, MoE)]
        self.experts = max((ffn.num_experts for ffn in moe), default=0)
        heads = next((m for own in mixers for m in own if isinstance(m, AttentionKind)), None)
        self.grouped = 0 if heads is None else heads.num_attention_heads // max(1, heads.num_key_value_heads)
        # LLaMA-1 65B also has 80 layers, but as many key-value heads as heads
        families_70b = ("llama", "qwen2") if self.grouped > 1 else ("qwen2",)
        self.type_70b = len(spec.order) == 80 and spec.family in families_70b

    def storage(self, op: Op, layer: int | None) -> Storage | None:
        """Return how the matrices of an op are stored in one layer. None: they are F32."""
        assert op.matrix is not None
        row = op.matrix[2] if op.kind == "embedding" else op.matrix[1]
        if op.component == "router":
            return _storage("F16") if self.router_f16 else None
        if op.component in ("position_embedding", "token_type_embedding"):
            return None
        if op.component in ("lm_head", "embedding"):
            return _storage(self._table(op, row))
        name = op.name.rpartition(".")[2]
        role = self._role(op, name)
        index = layer if layer is not None else 0
        attention = role in ("value", "attention_output", "query", "key")
        place = Place(
            at=self.order.get(index, index) if attention else index,
            total=len(self.order) if attention else len(self.spec.order),
            grouped=self.grouped,
            experts=self.experts,
            imatrix=self.imatrix,
        )
        return _storage(fitted(block_type(self.gguf, role, place, type_70b=self.type_70b), row))

    def _table(self, op: Op, row: int) -> BlockType:
        """Return the type of the embedding or of the head. A tied embedding has the type of the head."""
        if self.tables is not None:
            return fitted(self.tables, row)
        if op.component == "embedding" and not op.tied:
            return fitted(self.gguf.embedding or self.gguf.base, row)
        return fitted(self.gguf.output or self.gguf.base, row)

    def _role(self, op: Op, name: str) -> TensorRole | None:
        if op.component == "experts" and any(rule.role == "experts" for rule in self.gguf.rules):
            return "experts"
        if op.component == "attention":
            if self.fused and name in ("q_proj", "k_proj", "v_proj"):
                return "value"
            roles: dict[str, TensorRole] = {
                "q_proj": "query",
                "k_proj": "key",
                "v_proj": "value",
                "kv_b_proj": "value",
                "o_proj": "attention_output",
            }
            return roles.get(name)
        if name == "down_proj":
            return "down"
        return "gate_up" if name in ("gate_proj", "up_proj") else None


def _storage(type: BlockType) -> Storage:
    elements, size = BLOCKS[type]
    return Storage(type, (StoredTensor("weight", 8 * size, 1, elements, 0, 1, None),), 0)
