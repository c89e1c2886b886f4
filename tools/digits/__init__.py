"""Makes the vectors of the digits-and-garments experiment from images that npm packages carry."""
