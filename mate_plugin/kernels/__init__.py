"""The documented functions and the compiled core behind them. Knows no engine."""
