"""Names of public checkpoints: the study's own, and the reference models it compares with.

None of these could be looked up while this was written. What is known of each name stands beside it: run names occur
in the authors' released code (`output/NAME/final`), seen names on public pages (docs/protocol.md 8). The pages show
two organisations. Each name is tried under both, first under the one where it was seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from xtrrep.console import UsageError

# Short names that `model.checkpoint` understands. A local folder of such a name is written ./NAME.
REFERENCES = {
    "xtr_base_en": "google/xtr-base-en",  # T5; lower-cased
    "xtr_base_en_pylate": "robro612/xtr-base-en-pylate",  # the port that the study itself evaluated
    "colbertv2": "colbert-ir/colbertv2.0",
    "gte_moderncolbert": "lightonai/GTE-ModernColBERT-v1",
}

ORGANISATIONS = ("xtr-replicability", "robro612")


@dataclass(frozen=True)
class Released:
    """One of the study's models. `known` says where its name comes from."""

    name: str
    known: str
    seen: str = ORGANISATIONS[0]  # the organisation to try first

    @property
    def hubs(self) -> list[str]:
        """The ids to try, in order."""
        return [f"{self.seen}/{self.name}", *(f"{o}/{self.name}" for o in ORGANISATIONS if o != self.seen)]


_RUN = "run name in the released code"
_SEEN = "seen on a public page"

# (setup, config, stage)
RELEASED: dict[tuple[str, str, str], Released] = {
    ("I", "colbert", "contrastive"): Released("bge_small_colbert_contrastive", _SEEN, "robro612"),
    ("I", "xtr_k64", "contrastive"): Released("bge_small_xtr_contrastive_k64", _SEEN, "robro612"),
    ("I", "xtr_k128", "contrastive"): Released("bge_small_xtr_contrastive_k128", _SEEN, "robro612"),
    ("I", "xtr_k256", "contrastive"): Released("bge_small_xtr_contrastive_k256", _SEEN, "robro612"),
    ("I", "xtr_k512", "contrastive"): Released("bge_small_xtr_contrastive_k512", _SEEN, "robro612"),
    ("II", "colbert", "contrastive"): Released("modernbert_colbert_contrastive", _SEEN),
    ("II", "xtr_k128", "contrastive"): Released("modernbert_xtr_contrastive_k128", _RUN),
    ("II", "xtr_k256", "contrastive"): Released("modernbert_xtr_contrastive_k256", _RUN),
    ("II", "xtr_k512", "contrastive"): Released("modernbert_xtr_contrastive_k512", _RUN),
    ("II", "xtr_multi", "contrastive"): Released("modernbert_xtr_contrastive_multik128-256-512", _SEEN),
    ("II", "colbert", "kd"): Released("modernbert_colbert_kd", _RUN),
    ("II", "xtr_k256", "kd"): Released("modernbert_xtr_kd_k256", _RUN),
    ("II", "xtr_k512", "kd"): Released("modernbert_xtr_kd_k512", _SEEN),
    ("II", "xtr_multi", "kd"): Released("modernbert_xtr_kd_multik128-256-512", _SEEN),
}

# Why a combination that one could expect is not there.
ABSENT = {
    ("II", "xtr_k128", "kd"): "its distillation diverged",
    ("II", "xtr_k64", "contrastive"): "the study dropped k_train 64 after setup (I)",
    ("II", "xtr_k64", "kd"): "the study dropped k_train 64 after setup (I)",
}

OVERRIDE = "model.source=checkpoint model.checkpoint=ORG/NAME names any other"


def released_ids(setup: str, config: str, stage: str) -> list[str]:
    """The hub ids to try for the study's own model of that name, in order.

    Raises UsageError, with the list, where there is none.
    """
    key = (setup, config, stage)
    if key in RELEASED:
        return RELEASED[key].hubs
    name = f"{setup}/{config}" + ("_kd" if stage == "kd" else "")
    reason = f": {ABSENT[key]}" if key in ABSENT else ""
    listed = ", ".join(sorted(f"{s}/{c}" + ("_kd" if t == "kd" else "") for s, c, t in RELEASED))
    raise UsageError(
        f"the study released no model {name}{reason}", hint=f"model.source=released has {listed}; {OVERRIDE}"
    )


def resolve(name: str) -> str:
    """The hub id behind a short name; any other name is returned as it is."""
    return REFERENCES.get(name, name)


def doubt(hub: str) -> str | None:
    """What to tell a person when the hub does not know an inferred id; None for an id that is not inferred."""
    for released in RELEASED.values():
        if hub in released.hubs:
            return f"tried {' and '.join(released.hubs)}; the name is inferred ({released.known}): {OVERRIDE}"
    return None
