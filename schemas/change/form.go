package change

// Form says how the text of a type's values is written as JSON. The zero Form leaves it to the type's OID, which says
// enough for the types that come with Postgres; of others the catalog must say what they are made of.
type Form struct {
	// OID is the built-in type whose form the values have, or each element of an array: that under a domain; [FormText]
	// where they have none of their own; [FormHstore].
	OID uint32
	// Mod is the modifier of that type, -1 for none.
	Mod int32
	// Array: the value is an array in the text form of Postgres. Delimiter stands between its elements.
	Array     bool
	Delimiter byte
}

// Forms that are no built-in type of their own.
const (
	// FormText is a string of Postgres' text.
	FormText uint32 = 25
	// FormHstore is the extension's type, which has another OID in each database.
	FormHstore uint32 = 1<<32 - 1
	// formTimetzUTC is timetz as the connector has it.
	formTimetzUTC uint32 = 1<<32 - 2
)

// FirstAssignedOID is where the OIDs begin that differ from database to database. Those below are the same in all.
const FirstAssignedOID = 10000

// The types of Postgres whose text has a JSON form of its own (src/include/catalog/pg_type.dat).
const (
	oidBool        = 16
	oidBytea       = 17
	oidInt8        = 20
	oidInt2        = 21
	oidInt4        = 23
	oidOID         = 26
	oidPoint       = 600
	oidLseg        = 601
	oidPath        = 602
	oidBox         = 603
	oidPolygon     = 604
	oidLine        = 628
	oidFloat4      = 700
	oidFloat8      = 701
	oidCircle      = 718
	oidMoney       = 790
	oidDate        = 1082
	oidTime        = 1083
	oidTimestamp   = 1114
	oidTimestamptz = 1184
	oidInterval    = 1186
	oidTimetz      = 1266
	oidBit         = 1560
	oidNumeric     = 1700
)

// BuiltIn gives the form of a type that comes with Postgres; of any other that of text.
func BuiltIn(oid uint32, mod int32) Form {
	switch oid {
	case oidBool, oidBytea, oidInt8, oidInt2, oidInt4, oidOID, oidPoint, oidLseg, oidPath, oidBox, oidPolygon, oidLine,
		oidFloat4, oidFloat8, oidCircle, oidMoney, oidDate, oidTime, oidTimestamp, oidTimestamptz, oidInterval, oidTimetz,
		oidBit, oidNumeric:
		return Form{OID: oid, Mod: mod}
	}
	if of := element(oid); of != 0 {
		f := BuiltIn(of, mod)
		return f.ArrayOf(delimiter(of))
	}
	return Form{OID: FormText, Mod: mod}
}

// ArrayOf is the form of an array whose elements have this one. Elements that are arrays themselves, as a domain makes
// it possible, are text.
func (f Form) ArrayOf(delimiter byte) Form {
	if f.Array {
		f = Form{OID: FormText, Mod: -1}
	}
	f.Array, f.Delimiter = true, delimiter
	return f
}

func delimiter(element uint32) byte {
	if element == oidBox {
		return ';'
	}
	return ','
}

// element gives the element type of the built-in array types: zero for any other type, and for int2vector and the
// like, whose text is no array's. Elements that are text anyway have the OID of text.
func element(oid uint32) uint32 {
	switch oid {
	case 1000:
		return oidBool
	case 1001:
		return oidBytea
	case 1005:
		return oidInt2
	case 1007:
		return oidInt4
	case 1016:
		return oidInt8
	case 1017:
		return oidPoint
	case 1018:
		return oidLseg
	case 1019:
		return oidPath
	case 1020:
		return oidBox
	case 1021:
		return oidFloat4
	case 1022:
		return oidFloat8
	case 1027:
		return oidPolygon
	case 1028:
		return oidOID
	case 629:
		return oidLine
	case 719:
		return oidCircle
	case 791:
		return oidMoney
	case 1182:
		return oidDate
	case 1183:
		return oidTime
	case 1115:
		return oidTimestamp
	case 1185:
		return oidTimestamptz
	case 1187:
		return oidInterval
	case 1231:
		return oidNumeric
	case 1270:
		return oidTimetz
	case 1561:
		return oidBit
	case 1002, 1003, 1006, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015, 1034, 1040, 1041, 1263, // "char" to cstring
		143, 199, 210, 270, 271, 272, 273, 651, 775, 1563, 2201, 2207, 2208, 2209, 2210, 2211, 2287, 2949, 2951, 3221, // xml to pg_lsn
		3643, 3644, 3645, 3735, 3770, 3807, 3905, 3907, 3909, 3911, 3913, 3927, // tsvector to the ranges
		4073, 4090, 4097, 4192, 5039, 6150, 6151, 6152, 6153, 6155, 6157: // jsonpath to the multiranges
		return FormText
	}
	return 0
}
