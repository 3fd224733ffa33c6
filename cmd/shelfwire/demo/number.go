package demo

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

var (
	plainNumber   = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?$`)
	groupedNumber = regexp.MustCompile(`^-?[0-9]{1,3}(,[0-9]{3})*(\.[0-9]+)?$|^-?[0-9]{1,3}(,[0-9]{2})*,[0-9]{3}(\.[0-9]+)?$`)
	currency      = regexp.MustCompile(`^(\p{L}+\.?|\p{Sc})+|(\p{L}+\.?|\p{Sc})+$`) // US$, Rs., kr., €
	powerNumber   = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?[eE][+-]?[0-9]{1,2}$`)
)

var (
	errNoNumber  = errors.New("no number")
	errAmbiguous = errors.New("the separator may be of decimals or of thousands")
)

// parseNumber makes a plain decimal (-1299.00) of how people and spreadsheets write one, and tells whether it had to
// change anything: thousands separators, a decimal comma, a power of ten, with money a currency before or behind.
//
// A comma and a point in one number speak for themselves: the last is the decimal one. Alone, a point is decimal. A
// comma alone is decimal unless exactly three digits follow; then it separates thousands in a file that has commas
// between its cells, as whoever has a decimal comma writes semicolons. In other files both are possible.
func parseNumber(cell string, comma rune, money bool) (number string, mended bool, err error) {
	if plainNumber.MatchString(cell) && (comma == ',' || !threeBehind(cell, ".")) {
		return cell, false, nil
	}
	t := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r), r == '\'', r == '’': // separate thousands in France and Switzerland
			return -1
		case r == '−':
			return '-'
		}
		return r
	}, cell)
	if money {
		t = currency.ReplaceAllString(t, "")
	}
	if strings.HasPrefix(t, ".") { // .50
		t = "0" + t
	}
	if powerNumber.MatchString(t) {
		f, err := strconv.ParseFloat(t, 64)
		return strconv.FormatFloat(f, 'f', -1, 64), true, err
	}
	point, decimalComma := strings.LastIndex(t, "."), strings.LastIndex(t, ",")
	switch {
	case point >= 0 && decimalComma > point: // 1.299,00
		t = swapSeparators(t)
	case point < 0 && strings.Count(t, ",") == 1 && !threeBehind(t, ","): // 12,50
		t = swapSeparators(t)
	case point < 0 && strings.Count(t, ",") == 1 && comma != ',' && !strings.HasPrefix(t, "0,"),
		decimalComma < 0 && strings.Count(t, ".") == 1 && comma != ',' && threeBehind(t, ".") && !strings.HasPrefix(t, "0."):
		return "", false, errAmbiguous
	case point < 0 && strings.HasPrefix(t, "0,"): // 0,125
		t = swapSeparators(t)
	case decimalComma < 0 && strings.Count(t, ".") > 1: // 1.299.000
		t = swapSeparators(t)
	}
	if !plainNumber.MatchString(t) && !groupedNumber.MatchString(t) {
		return "", false, errNoNumber
	}
	t = strings.ReplaceAll(t, ",", "")
	return t, t != cell, nil
}

// threeBehind tells whether exactly three digits stand behind the last separator.
func threeBehind(t, separator string) bool {
	at := strings.LastIndex(t, separator)
	return at >= 0 && len(t)-at-1 == 3
}

func swapSeparators(t string) string {
	return strings.NewReplacer(".", ",", ",", ".").Replace(t)
}

// truths are true and false as spreadsheets of several languages write them, in lower case.
var truths = func() map[string]bool {
	all := map[string]bool{}
	for word := range strings.FieldsSeq("true yes y t 1 x on wahr ja vrai oui verdadero sí si vero sì verdadeiro sim waar sant sand tosi prawda tak " +
		"pravda ano doğru evet истина да igaz igen adevărat da αληθής 真 是 참") {
		all[word] = true
	}
	for word := range strings.FieldsSeq("false no n f 0 off falsch nein faux non falso não nao onwaar nee falskt falsk usann epätosi fałsz nie nepravda ne " +
		"yanlış yanliş hayır ложь нет hamis nem fals nu ψευδής 偽 假 否 거짓") {
		all[word] = false
	}
	return all
}()
