package change

import "slices"

// plan is what the rows of one shape of a table have in common, so that it is not made again for each.
type plan struct {
	columns []columnPlan
	// table is `"schema":"public","table":"products","txId":`.
	table []byte
	// key and message are the places of the columns of the primary key and of the record's key; nil for none.
	key, message []int
	// utc are the columns as the connector has them, where that loses what columns keep; nil: as columns.
	utc []columnPlan
}

type columnPlan struct {
	name      []byte // `,"name":`
	form      Form
	unchanged []byte // what stands for a value that was not sent
}

// planned returns the plan of a relation, which is complete by the time it is asked for a row.
func (r *Relation) planned() *plan {
	if p := r.plan.Load(); p != nil {
		return p
	}
	p := &plan{columns: make([]columnPlan, len(r.Columns))}
	for i := range r.Columns {
		c := &r.Columns[i]
		f := c.Form
		if f == (Form{}) {
			f = BuiltIn(c.TypeOID, c.TypeMod)
		}
		name := append(appendString([]byte{','}, []byte(c.Name)), ':')
		p.columns[i] = columnPlan{name: name, form: f, unchanged: unavailable(f)}
	}
	if slices.ContainsFunc(p.columns, func(c columnPlan) bool { return c.form.OID == oidTimetz }) {
		p.utc = slices.Clone(p.columns)
		for i := range p.utc {
			if p.utc[i].form.OID == oidTimetz {
				p.utc[i].form.OID = formTimetzUTC
			}
		}
	}
	p.table = appendString([]byte(`"schema":`), []byte(r.Schema))
	p.table = appendString(append(p.table, `,"table":`...), []byte(r.Name))
	p.table = append(p.table, `,"txId":`...)
	p.key = r.places(r.PrimaryKey)
	p.message = p.key
	if key := r.messageKey(); !slices.Equal(key, r.PrimaryKey) {
		p.message = r.places(key)
	}
	r.plan.Store(p)
	return p
}

// OwnForm reports whether the connector's form of the table's rows is another than ours; see [Envelope.UTC].
func (r *Relation) OwnForm() bool { return r.planned().utc != nil }

// written are the columns in ours or the connector's form.
func (p *plan) written(utc bool) []columnPlan {
	if utc && p.utc != nil {
		return p.utc
	}
	return p.columns
}

// messageKey lists the columns of a record's key; see [AppendMessageKey].
func (r *Relation) messageKey() []string {
	if r.ReplicaIdentity != 'i' {
		return r.PrimaryKey
	}
	var identity []string
	for i := range r.Columns {
		if r.Columns[i].Identity {
			identity = append(identity, r.Columns[i].Name)
		}
	}
	for _, c := range r.PrimaryKey {
		if !slices.Contains(identity, c) {
			return identity
		}
	}
	if len(r.PrimaryKey) == 0 {
		return identity
	}
	return r.PrimaryKey
}

// places finds columns; nil where there are none, or one of them is not among those that are sent.
func (r *Relation) places(columns []string) []int {
	var at []int
	for _, c := range columns {
		i := r.Index(c)
		if i < 0 {
			return nil
		}
		at = append(at, i)
	}
	return at
}

// unavailable stands for a value that was not sent, as the connector has it for each type.
func unavailable(f Form) []byte {
	placeholder := appendString(nil, []byte(Unavailable))
	switch f.OID {
	case oidBytea:
		placeholder = appendBase64(nil, []byte(Unavailable))
	case FormHstore:
		placeholder = []byte(`"{\"` + Unavailable + `\":\"` + Unavailable + `\"}"`)
	}
	if f.Array {
		return append(append([]byte{'['}, placeholder...), ']')
	}
	return placeholder
}
