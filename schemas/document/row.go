package document

import "encoding/json"

// Row is one row of the documents query. Shop is empty and Document nil where the product belongs to no shop.
type Row struct {
	ProductID string
	// Shop is the shop's name in the configuration.
	Shop string
	// Document is the JSON as the query returned it.
	Document json.RawMessage
}
