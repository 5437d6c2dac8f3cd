"""Federated averaging in numpy over any aggregator that can sum: floats live here and nowhere below."""
