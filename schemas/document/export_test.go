package document

// The two ways of Parse, for tests that compare them.
var (
	DecodeSound    = decodeSound
	DecodeBySchema = decodeBySchema
)

// Patterns are those that sound documents are checked by.
func Patterns() (out []string) {
	for _, p := range []interface{ String() string }{
		decimalPattern, handlePattern, tagPattern, namespacePattern, keyPattern, typePattern, urlPattern,
	} {
		out = append(out, p.String())
	}
	return out
}
