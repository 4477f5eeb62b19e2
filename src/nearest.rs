//! Which known word a mistyped one was meant to be.

/// No name that a person mistyped is longer, in characters; the work grows with the length.
const LONGEST: usize = 40;

/// ` (did you mean `x`?)`, or nothing where no known word shares at least half of this one, or it is too long for a name.
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    if word.chars().nth(LONGEST).is_some() {
        return String::new();
    }
    let lower = word.to_lowercase();
    let length = lower.chars().count();
    // Of those that are equally near, one that begins alike.
    let near = known.into_iter().map(|known| {
        let (count, begins_alike) = (known.chars().count(), known.chars().next() == lower.chars().next());
        let rank = (edit_distance(&lower, &known.to_lowercase()), !begins_alike, !lower.starts_with(known));
        (rank, count.abs_diff(length), count, known)
    });
    match near.min().filter(|((distance, ..), _, count, _)| 2 * distance <= length.max(*count)) {
        Some((.., known)) => format!(" (did you mean `{known}`?)"),
        None => String::new(),
    }
}

/// The known word that is the nearest; none for a word that is too long for a name.
pub(crate) fn nearest<S: AsRef<str>>(word: &str, known: impl IntoIterator<Item = S>) -> Option<S> {
    if word.chars().nth(LONGEST).is_some() {
        return None;
    }
    known.into_iter().min_by_key(|known| edit_distance(word, known.as_ref()))
}

/// Levenshtein distance in characters; two neighbours that changed places count once.
pub(crate) fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let substitute = rows[i][j] + usize::from(x != y);
            let mut least = substitute.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i - 1] == *y && *x == b[j - 1] {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distances() {
        for (a, b, distance) in
            [("lemon", "lemon", 0), ("lemon", "melon", 2), ("", "abc", 3), ("lemno", "lemon", 1), ("x", "", 1)]
        {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }

    #[test]
    fn far_words_are_not_near() {
        let known = ["dbcache", "prune", "none"];
        for (word, near) in
            [("dbcahce", " (did you mean `dbcache`?)"), ("PRUNES", " (did you mean `prune`?)"), ("xyz", "")]
        {
            assert_eq!(did_you_mean(word, known), near, "{word}");
        }
        let long = "x".repeat(LONGEST);
        assert_eq!(did_you_mean(&long, [long.as_str()]), format!(" (did you mean `{long}`?)"));
        assert_eq!(did_you_mean(&format!("{long}x"), [long.as_str()]), "");
        assert_eq!((nearest("pune", known), nearest(&format!("{long}x"), known)), (Some("prune"), None));
    }
}
