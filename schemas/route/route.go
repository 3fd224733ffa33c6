// Package route holds the declarations that lead from a row of the source to its products.
package route

// Route says how the rows of one table lead to products. Exactly one of Key, Parent and Query is set. A route is
// taken for the old and for the new image of a row, so the columns that it reads must be in the table's replica
// identity (Key and Parent.Column; all columns for Query).
type Route struct {
	// Table is "schema.table".
	Table string `yaml:"table"`
	// Key is the column that holds the product id.
	Key string `yaml:"key,omitempty"`
	// Parent leads through one row of another table.
	Parent *Parent `yaml:"parent,omitempty"`
	// Query is for rows that concern many products: SQL that lists product ids as text, ordered by it COLLATE "C".
	// $1 is the row's image as jsonb, $2 the last product id of the page before ('' at first), $3 the page size.
	Query string `yaml:"query,omitempty"`
	// Lane is LaneContent where the rows hold what may wait longer than prices and stock: texts, images. They are pushed
	// after push.content.quiet and behind live prices. Empty: live. Rows with a Query go in the lane of campaigns.
	Lane string `yaml:"lane,omitempty"`
	// Batch makes each transaction that changes the table a batch.
	Batch bool `yaml:"batch,omitempty"`
	// BatchWhen narrows Batch to changes in which one of these columns differs between the old and the new image
	// (an insert with a value that is not null counts). Empty: any change.
	BatchWhen []string `yaml:"batch_when,omitempty"`
	// Admin is the column whose value names the person behind the batch. Empty: none.
	Admin string `yaml:"admin,omitempty"`
}

// LaneContent is the value of a route's Lane.
const LaneContent = "content"

// Parent is a foreign key: Column of the routed table holds ID of Table, whose Key column is the product id.
type Parent struct {
	Column string `yaml:"column"`
	Table  string `yaml:"table"`
	ID     string `yaml:"id"`
	Key    string `yaml:"key"`
}
