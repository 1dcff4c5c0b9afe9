"""Attacks of the classes that other inference servers have had, each with its bound. `docs/security.md` lists them by
row, with the tests here and elsewhere that check them."""
