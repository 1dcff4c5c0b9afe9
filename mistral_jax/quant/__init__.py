"""Arrays of weights: the devices they lie on (`placement`, `split`), the forms that stay packed there (`array`),
products with them (`product`, `dot`), and the options for loading them (`plan`)."""
