// Package demo makes the life of a back office on the reference schema: a catalog, generated or loaded from a merchant's
// own CSV export, and the traffic of the programs that work on it. It writes to Postgres only and knows nothing of
// Shelfwire; what arrives in the shops is for the rest of the system to do, and for [Expectations] to check.
package demo

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/reference"
)

// Store is one of the demo's shops, as the simulator must know it.
type Store struct {
	// Name is the shop's name in the configuration and in catalog.stores.
	Name string
	// Locations are the names of its inventory locations, one for each warehouse.
	Locations []string
	// Publications are the sales channels that its products are published to.
	Publications []string
}

// Stores returns the two stores that every catalog of this package is sold in.
func Stores() []Store {
	channels := []string{"Online Store"}
	return []Store{
		{Name: "north", Locations: []string{"Hamburg", "Rostock"}, Publications: channels},
		{Name: "south", Locations: []string{"Munich", "Ulm"}, Publications: channels},
	}
}

// The ids of the stores and warehouses, in the order of Stores and of each store's locations.
const (
	northID, southID = 1, 2
	mainWarehouse    = 1
	reserveWarehouse = 2
)

// Install creates the reference schema, with the replica identities that its routes need, in an empty database.
func Install(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, reference.SchemaSQL()); err != nil {
		return fmt.Errorf("create the reference schema: %w", err)
	}
	if _, err := conn.Exec(ctx, reference.ReplicaIdentitySQL()); err != nil {
		return fmt.Errorf("set the replica identities of the reference schema: %w", err)
	}
	return nil
}

// insertStores writes the stores, the warehouses and which location of a store each warehouse serves.
func insertStores(ctx context.Context, tx pgx.Tx) error {
	batch := &pgx.Batch{}
	batch.Queue(`INSERT INTO catalog.warehouses (id, name) VALUES ($1, 'main'), ($2, 'reserve')`, mainWarehouse, reserveWarehouse)
	for i, store := range Stores() {
		id := int64(i + 1)
		batch.Queue(`INSERT INTO catalog.stores (id, name, publications) VALUES ($1, $2, $3)`, id, store.Name, store.Publications)
		for j, location := range store.Locations {
			batch.Queue(`INSERT INTO catalog.warehouse_locations VALUES ($1, $2, $3)`, int64(j+1), id, location)
		}
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("insert stores and warehouses: %w", err)
	}
	return nil
}
