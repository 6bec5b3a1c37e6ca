"""AWS's price list of SageMaker read into a :class:`airflow_amt.tuning.costs.PriceTable`.

A product of ``GetProducts`` (service code ``AmazonSageMaker``, family ``ML Instance``) is told apart by its
attributes. Training on demand has the usage type ``<region's short name>-Train:<instance type>``, as
``EU-Train:ml.m5.xlarge``, which is what bills call it too; other components (hosting, processing, spot
training, warm pools, ...) have other words there. Not every product has ``component`` or ``instanceName``.
These attributes were read in public code and bills; AWS's live list was never asked from here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_amt.exceptions import AmtFieldError, AmtRequestError
from airflow_amt.tuning.costs import PriceTable
from airflow_amt.tuning.history import finite

SERVICE_CODE = "AmazonSageMaker"
#: Attribute that names the region, and the product family of instances.
REGION_FIELD, FAMILY_FIELD, FAMILY = "regionCode", "productFamily", "ML Instance"

_TRAINING = re.compile(r"(?:[A-Z0-9-]+-)?Train:(ml\.[a-z0-9.-]+)")
_HOURS = ("hrs", "hr", "hours", "hour")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPrice:
    """What an hour of training on one instance costs on demand, by one product of the price list.

    :param instance_type: as ``ml.m5.xlarge``.
    :param sku: the product.
    :param per_hour: price.
    :param currency: as ``USD``.
    :param published: when AWS published the list, as it says it.
    """

    instance_type: str
    sku: str
    per_hour: float
    currency: str
    published: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceListTable:
    """A price table made from the price list.

    :param prices: the table.
    :param published: the latest publication date among its products, as AWS says it.
    :param ambiguous: instance types of which several products have different prices, which are given; the
        table has the dearest.
    """

    prices: PriceTable
    published: str | None
    ambiguous: Mapping[str, tuple[float, ...]]


def training_price(product: Mapping[str, Any] | str, *, region: str) -> TrainingPrice | None:
    """Read one product of ``GetProducts``, as a dict or as JSON text.

    Of several on-demand dimensions (tiers) the dearest counts. The currency is USD where the list has it.

    :return: ``None`` if it is not the price of an hour of training, on demand, in that region.
    :raises AmtFieldError: it is no product.
    """
    offer = _parsed(product)
    described = _mapping(offer.get("product"))
    attributes = _mapping(described.get("attributes"))
    found = _TRAINING.fullmatch(str(attributes.get("usagetype") or ""))
    if found is None or attributes.get(REGION_FIELD) not in (None, region):
        return None
    prices = [
        (amount, currency)
        for term in _mapping(_mapping(offer.get("terms")).get("OnDemand")).values()
        for dimension in _mapping(_mapping(term).get("priceDimensions")).values()
        if str(_mapping(dimension).get("unit") or "").lower() in _HOURS
        for currency, text in _mapping(_mapping(dimension).get("pricePerUnit")).items()
        if (amount := _amount(text)) is not None
    ]
    if not prices:
        return None
    currencies = {currency for _, currency in prices}
    currency = "USD" if "USD" in currencies else min(currencies)
    return TrainingPrice(
        instance_type=found[1],
        sku=str(described.get("sku") or ""),
        per_hour=max(amount for amount, one in prices if one == currency),
        currency=currency,
        published=offer.get("publicationDate"),
    )


def price_table(
    products: Iterable[Mapping[str, Any] | str],
    *,
    region: str,
    instance_types: Iterable[str] = (),
    spot_discount: float = 0.0,
) -> PriceListTable:
    """Make a price table of the products of ``GetProducts``.

    :param products: of one region or more.
    :param region: whose prices are wanted.
    :param instance_types: only these; all that the list has if there are none.
    :param spot_discount: goes into the table.
    :raises AmtRequestError: the list lacks instance types, all are named; or it has no training at all.
    """
    found: dict[str, list[TrainingPrice]] = {}
    for product in products:
        one = training_price(product, region=region)
        if one is not None:
            found.setdefault(one.instance_type, []).append(one)
    wanted = sorted(set(instance_types) or found)
    problems = [
        AmtFieldError(
            "instance_type",
            kind,
            f"an instance type that AWS's price list has for training in {region}",
            _advice(kind, found, region),
        )
        for kind in wanted
        if kind not in found
    ]
    if not wanted:
        problems.append(
            AmtFieldError(
                "region",
                region,
                "a region for which AWS's price list has prices of training",
                "check the spelling of the region",
            )
        )
    if problems:
        raise AmtRequestError(problems)
    chosen = [one for kind in wanted for one in found[kind]]
    currencies = sorted({one.currency for one in chosen})
    if len(currencies) > 1:
        raise AmtRequestError(
            [
                AmtFieldError(
                    "currency",
                    ", ".join(currencies),
                    "one currency",
                    "name instance types that are priced in one",
                )
            ]
        )
    by_type = {kind: sorted({one.per_hour for one in found[kind]}) for kind in wanted}
    return PriceListTable(
        prices=PriceTable(
            currency=currencies[0],
            per_hour={kind: prices[-1] for kind, prices in by_type.items()},
            spot_discount=spot_discount,
        ),
        published=max((one.published for one in chosen if one.published), default=None),
        ambiguous={kind: tuple(prices) for kind, prices in by_type.items() if len(prices) > 1},
    )


def _advice(kind: str, found: Mapping[str, Any], region: str) -> str:
    family = kind.rpartition(".")[0]
    near = sorted(one for one in found if family and one.startswith(f"{family}."))
    if near:
        return f"check the spelling: there are {', '.join(near)}"
    return f"check the spelling, and whether {region} has it ({len(found)} others were found)"


def _parsed(product: Mapping[str, Any] | str) -> Mapping[str, Any]:
    given: Any = product
    if isinstance(product, str):
        try:
            given = json.loads(product)
        except ValueError:
            given = None
    if not isinstance(given, Mapping):
        raise AmtFieldError(
            "PriceList", product, "products of GetProducts as JSON", "see whether the endpoint is AWS's"
        )
    return given


def _amount(text: Any) -> float | None:
    try:
        amount = finite(float(text))
    except (TypeError, ValueError):
        return None
    return amount if amount is not None and amount >= 0 else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
