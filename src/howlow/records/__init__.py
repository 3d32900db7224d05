"""What a trial leaves behind: the types of a record, how it is written and read, and when two may be compared.

A trial's folder holds `record.json` (settings as asked, what was decided, environment, status, measurements, scores,
warnings), `steps.jsonl` (one raw line a step) and `timeline.jsonl` (one line a reading). The record is written last,
under a temporary name, flushed to the disk and renamed: there is a record, or the trial is not done. Records hold no
summaries: throughput and relative figures are computed when records are read (`howlow.analysis`).

Absent is `None`, never 0, -1 or NaN.
"""

from howlow.records.between_sweeps import between_sweeps
from howlow.records.comparability import Difference, differences, refuse_other_machine, refuse_to_mix
from howlow.records.conditions import DeviceConditions, Spread
from howlow.records.cost_conditions import CostConditions, cost_conditions, other_cards
from howlow.records.data import DataRecord, DataSource
from howlow.records.devices import groups_of, is_gpu_uuid, torch_name
from howlow.records.energy import (
    CounterPace,
    EnergyPart,
    EnergySource,
    EnergyWindow,
    ErrorCover,
    common_cover,
)
from howlow.records.files import (
    LineWriter,
    clear_temporaries,
    cut_lines,
    has_record,
    lists_record,
    read_lines,
    read_record,
    read_record_beside,
    read_records,
    read_steps,
    read_timeline,
    write_atomically,
    write_record,
)
from howlow.records.gemms import GemmRecord
from howlow.records.identity import Provenance
from howlow.records.looks import LookRecord, LooksEnd, LooksRecord, StoppedRank, read_looks, write_looks
from howlow.records.memory import BatchProbe, BatchSearch, MemoryShortage, SearchDurations
from howlow.records.neighbours import Neighbour
from howlow.records.predictions import ScoredLine, read_scored
from howlow.records.schema import (
    SCHEMA_VERSION,
    Environment,
    HeapMode,
    Idle,
    LayoutChoice,
    LayoutRecord,
    LayoutTokens,
    MergedRecord,
    MeterRecord,
    ModelRecord,
    Part,
    PhaseRecord,
    Reading,
    Record,
    Resolved,
    Scores,
    Status,
    Step,
)
from howlow.records.shrunk import ShrunkRecord
from howlow.records.spectra import ModuleSpectrum, Spectra, read_spectra, write_spectra
from howlow.records.warnings import REMEDIES, Frozen, PhaseName, RecordWarning, WarningKind
from howlow.records.window import measured_steps, window_times_s

__all__ = [
    "groups_of",
    "is_gpu_uuid",
    "torch_name",
    "Neighbour",
    "CostConditions",
    "cost_conditions",
    "BatchProbe",
    "BatchSearch",
    "CounterPace",
    "DeviceConditions",
    "DataRecord",
    "DataSource",
    "Difference",
    "EnergyPart",
    "EnergySource",
    "EnergyWindow",
    "Environment",
    "ErrorCover",
    "Frozen",
    "HeapMode",
    "Idle",
    "GemmRecord",
    "LayoutChoice",
    "LayoutRecord",
    "LayoutTokens",
    "LineWriter",
    "MemoryShortage",
    "MergedRecord",
    "MeterRecord",
    "LookRecord",
    "LooksEnd",
    "LooksRecord",
    "ModelRecord",
    "ModuleSpectrum",
    "Part",
    "PhaseName",
    "PhaseRecord",
    "Provenance",
    "REMEDIES",
    "Reading",
    "Record",
    "RecordWarning",
    "Resolved",
    "SCHEMA_VERSION",
    "ScoredLine",
    "Scores",
    "SearchDurations",
    "ShrunkRecord",
    "Spectra",
    "Spread",
    "Status",
    "Step",
    "StoppedRank",
    "WarningKind",
    "between_sweeps",
    "clear_temporaries",
    "common_cover",
    "cut_lines",
    "differences",
    "has_record",
    "lists_record",
    "measured_steps",
    "other_cards",
    "read_lines",
    "read_looks",
    "read_record",
    "read_record_beside",
    "read_records",
    "read_scored",
    "read_spectra",
    "read_steps",
    "read_timeline",
    "refuse_other_machine",
    "refuse_to_mix",
    "write_atomically",
    "write_looks",
    "write_record",
    "write_spectra",
    "window_times_s",
]
