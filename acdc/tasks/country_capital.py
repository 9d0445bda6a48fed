"""Country to capital: a fact recalled from the name of its subject (after Meng et al. 2022, arXiv 2202.05262)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import cycle
from random import Random

from acdc.errors import Fault
from acdc.tasks.assembling import Candidate, Draft, Misfit, answer_tokens, assemble, check_corruption, fill, refuse
from acdc.tasks.description import TaskDescription
from acdc.tasks.encoding import Encoder
from acdc.tasks.prompts import PromptSet, Tokenizer
from acdc.tasks.templates import render
from acdc.tasks.vocabulary import fitting

NAME = "country_capital"
CORRUPTIONS = ("other_country",)
ROLES = ("country",)
MIN_COUNTRIES = 6

SENTENCES = {
    "city": "The capital of {country} is the city of",
    "called": "The capital city of {country} is called",
    "question": "Q: What is the capital of {country}? A:",
    "knows": "Everyone knows that the capital of {country} is",
    "visit": "If you visit the capital of {country}, you will be in",
    "government": "The government of {country} sits in the city of",
    "in": "In {country}, the name of the capital is",
    "born": "She was born in the capital of {country}, the city of",
}
# No capital that its country's name gives away (Mexico City, Tunis, Kuwait City, Panama City, Luxembourg, ...).
CAPITALS: Mapping[str, str] = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Scotland": "Edinburgh", "Austria": "Vienna", "Greece": "Athens",
    "Poland": "Warsaw", "Hungary": "Budapest", "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "Russia": "Moscow", "Ukraine": "Kyiv", "Turkey": "Ankara", "Egypt": "Cairo",
    "Iraq": "Baghdad", "Iran": "Tehran", "Syria": "Damascus", "Lebanon": "Beirut", "Israel": "Jerusalem",
    "Japan": "Tokyo", "China": "Beijing", "India": "Delhi", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Korea": "Seoul", "South Korea": "Seoul", "Taiwan": "Taipei", "Indonesia": "Jakarta", "Philippines": "Manila",
    "Afghanistan": "Kabul", "Pakistan": "Islamabad", "Nepal": "Kathmandu", "Bangladesh": "Dhaka", "Kenya": "Nairobi",
    "Cuba": "Havana", "Canada": "Ottawa", "Australia": "Canberra", "Peru": "Lima", "Belgium": "Brussels",
    "Netherlands": "Amsterdam", "Romania": "Bucharest", "Serbia": "Belgrade", "Croatia": "Zagreb",
    "Bulgaria": "Sofia", "Switzerland": "Bern", "Venezuela": "Caracas", "Colombia": "Bogota", "Chile": "Santiago",
    "Libya": "Tripoli", "Ghana": "Accra", "Latvia": "Riga", "Estonia": "Tallinn",
    "Jordan": "Amman", "Qatar": "Doha", "Uganda": "Kampala", "Zimbabwe": "Harare",
    "Senegal": "Dakar", "Somalia": "Mogadishu", "Sudan": "Khartoum", "Yemen": "Sanaa",
}  # fmt: skip


def build(tokenizer: Tokenizer, *, n_search: int, n_held_out: int, corruption: str, seed: int) -> PromptSet:
    check_corruption(NAME, corruption, CORRUPTIONS)
    encoder, faults = Encoder(tokenizer), list[Fault]()
    capitals = fitting(
        encoder, tuple(dict.fromkeys(CAPITALS.values())), what="capitals", at_least=MIN_COUNTRIES, faults=faults
    )
    refuse(NAME, tokenizer, faults)
    countries = [country for country, capital in CAPITALS.items() if capital in capitals]
    partners = _partners(encoder, countries)

    def stream(group: str, rng: Random) -> Iterator[Candidate]:
        shuffled = [country for country in countries if partners[country]]
        rng.shuffle(shuffled)
        for country in cycle(shuffled):  # every country once before one comes again
            yield _candidate(encoder, group, country, rng.choice(partners[country]))

    return fill(NAME, corruption, tuple(SENTENCES), stream, n_search=n_search, n_held_out=n_held_out, seed=seed)


def _partners(encoder: Encoder, countries: list[str]) -> dict[str, list[str]]:
    """For each country those with as many tokens and another capital."""
    of_length: dict[int, list[str]] = defaultdict(list)
    for country in countries:
        of_length[len(encoder.ids(f" {country}"))].append(country)
    return {
        country: [other for other in group if CAPITALS[other] != CAPITALS[country]]
        for group in of_length.values()
        for country in group
    }


def _candidate(encoder: Encoder, group: str, country: str, other: str) -> Candidate:
    clean = render(SENTENCES[group], {"country": country})
    corrupt = render(SENTENCES[group], {"country": other})
    answers = answer_tokens(encoder, clean.text, (f" {CAPITALS[country]}", f" {CAPITALS[other]}"))
    if isinstance(answers, Misfit):
        return answers
    return assemble(encoder, Draft(group, clean, corrupt, answers[:1], answers[1:], ROLES, ROLES))


COUNTRY_CAPITAL = TaskDescription(
    name=NAME,
    summary="Country to capital: recall a fact about the country mentioned.",
    example="The capital of France is the city of → Paris (not Berlin)",
    corruptions=CORRUPTIONS,
    roles=(*ROLES, "end"),
    build=build,
)
