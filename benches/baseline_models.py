"""The ordinary service's messages and tables (baseline.py)."""

from __future__ import annotations

from time import time
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel, Field, TypeAdapter
from sqlalchemy.dialects.postgresql import JSONB

metadata = sa.MetaData(schema="baseline")  # so that it can share a database with Zander
Time = sa.DateTime(timezone=True)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", sa.Uuid, primary_key=True),
    sa.Column("user_id", sa.String(100), nullable=False),
    sa.Column("start_time", Time, nullable=False),
    sa.Column("end_time", Time),
    sa.Column("device_info", JSONB),
)


def _events(name: str, *columns: sa.Column[Any]) -> sa.Table:
    """Declare a table of what users send; two of them share a microsecond, so the time is no key."""
    when = sa.Column("timestamp", Time, nullable=False)
    session = sa.Column("session_id", sa.Uuid, nullable=False)
    user = sa.Column("user_id", sa.String(100), nullable=False)
    data = sa.Column("data", JSONB, nullable=False)
    return sa.Table(name, metadata, when, session, user, *columns, data, sa.Index(f"{name}_by_user", user, when.desc()))


raw_samples = _events("raw_samples")
predictions = _events(
    "predictions",
    sa.Column("prediction_type", sa.String(50), nullable=False),
    sa.Column("classifier_name", sa.String(100), nullable=False),
    sa.Column("confidence", sa.Float),
    sa.Column("classifier_version", sa.String(50)),
)


class Auth(BaseModel):
    """A relay's first message."""

    type: Literal["auth"]
    api_key: str = ""
    user_id: str = Field(min_length=1, max_length=100)
    device_info: dict[str, Any] = {}


class Ping(BaseModel):
    """A clock probe."""

    type: Literal["ping"]
    t0: float


class Event(BaseModel):
    """What is buffered, stored and published; the server fills in whose it is."""

    table: ClassVar[sa.Table] = predictions
    type: str
    user_id: str = ""
    session_id: UUID | None = None
    timestamp: float = Field(default_factory=time)

    def record(self) -> dict[str, Any]:
        """Return the columns that no other event has."""
        raise NotImplementedError


class Raw(Event):
    """One sample."""

    table = raw_samples
    type: Literal["raw"]
    channels: list[float]

    def record(self) -> dict[str, Any]:
        return {"data": {"channels": self.channels}}


class Features(Event):
    """What a relay worked out."""

    type: Literal["features"]
    workload: float
    confidence: float
    band_powers: dict[str, float] = {}
    metrics: dict[str, float] = {}

    def record(self) -> dict[str, Any]:
        kind = {"prediction_type": "workload_edge", "classifier_name": "edge_relay", "classifier_version": None}
        data = self.model_dump(include={"workload", "band_powers", "metrics"})
        return {**kind, "confidence": self.confidence, "data": data}


class Prediction(Event):
    """What a consumer sends back."""

    type: Literal["prediction"]
    prediction_type: str = Field(max_length=50)
    classifier_name: str = Field(max_length=100)
    version: str | None = Field(None, max_length=50)
    data: dict[str, Any]

    def record(self) -> dict[str, Any]:
        kind = {"prediction_type": self.prediction_type, "classifier_name": self.classifier_name}
        confidence = self.data.get("confidence")
        confidence = confidence if isinstance(confidence, int | float) else None
        return {**kind, "classifier_version": self.version, "confidence": confidence, "data": self.data}


FROM_RELAY: TypeAdapter[Raw | Features | Ping] = TypeAdapter(
    Annotated[Raw | Features | Ping, Field(discriminator="type")]
)
