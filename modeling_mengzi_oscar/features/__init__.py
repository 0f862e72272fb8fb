"""Region features of many photos: where photos come from, how features are made, how they lie on disk and the Hub."""
