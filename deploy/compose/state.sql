-- The state has a database of its own, so that its rows are not decoded for the slot.
CREATE DATABASE shelfwire;
