//! Shell snippets, read as far as it takes to find the commands in them.

/// The simple commands of a snippet as their words. Redirections and comments are left out; a word that is
/// computed (`$NAME`, `"$(…)"`) stays as it is written.
pub fn commands(snippet: &str) -> Vec<Vec<String>> {
    let mut reader = Reader { rest: snippet, ..Reader::default() };
    reader.read();
    let mut commands = reader.commands;
    // What precedes a command is its environment.
    for words in &mut commands {
        let assignments = words.iter().take_while(|word| is_assignment(word)).count();
        words.drain(..assignments);
    }
    commands.retain(|words| !words.is_empty());
    commands
}

fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

#[derive(Default)]
struct Reader<'a> {
    rest: &'a str,
    commands: Vec<Vec<String>>,
    words: Vec<String>,
    word: Option<String>,
    /// The next word is where something is redirected to.
    redirected: bool,
}

impl Reader<'_> {
    fn read(&mut self) {
        while let Some(c) = self.rest.chars().next() {
            self.rest = &self.rest[c.len_utf8()..];
            match c {
                '\\' => {
                    let escaped = self.rest.chars().next().unwrap_or('\n');
                    self.rest = &self.rest[escaped.len_utf8().min(self.rest.len())..];
                    if escaped != '\n' {
                        self.word.get_or_insert_default().push(escaped);
                    }
                }
                '\'' => {
                    let (quoted, rest) = self.rest.split_once('\'').expect("a quote that is not closed");
                    self.word.get_or_insert_default().push_str(quoted);
                    self.rest = rest;
                }
                '"' => self.double_quoted(),
                '#' if self.word.is_none() => self.rest = self.rest.trim_start_matches(|c| c != '\n'),
                ' ' | '\t' => self.end_word(),
                '>' | '<' if self.rest.starts_with('(') => self.end_command(),
                '>' | '<' => self.redirect(),
                '\n' | '|' | '&' | ';' | '(' | ')' => self.end_command(),
                '$' if self.rest.starts_with('(') => self.end_command(),
                c => self.word.get_or_insert_default().push(c),
            }
        }
        self.end_command();
    }

    /// Up to the quote that is not within `$(…)`.
    fn double_quoted(&mut self) {
        let mut depth = 0;
        let text = self.rest;
        let mut previous = ' ';
        for (at, c) in text.char_indices() {
            match c {
                '(' if previous == '$' || depth > 0 => depth += 1,
                ')' if depth > 0 => depth -= 1,
                '"' if depth == 0 && previous != '\\' => {
                    self.word.get_or_insert_default().push_str(&text[..at]);
                    self.rest = &text[at + 1..];
                    return;
                }
                _ => {}
            }
            previous = c;
        }
        panic!("a quote that is not closed: {text}");
    }

    /// `2>&1`, `> file`, `<<END`.
    fn redirect(&mut self) {
        self.word.take_if(|word| word.chars().all(|c| c.is_ascii_digit()));
        self.end_word();
        self.rest = self.rest.trim_start_matches(['>', '<', '&']);
        self.redirected = true;
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        if !std::mem::take(&mut self.redirected) {
            self.words.push(word);
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        self.redirected = false;
        self.commands.push(std::mem::take(&mut self.words));
    }
}

#[test]
fn commands_are_found_wherever_they_stand() {
    let snippet = "FOO=1 posthaste a 'b c' > file 2>&1 &  # posthaste no\n\
                   export ID=$(posthaste d | sed -n 's/x//p')\n\
                   posthaste e \\\n  --f \"$(sed 's/\"(/)/p' x)\" < in && source <(posthaste g)\n";
    let found = commands(snippet);
    let ours: Vec<String> = found.iter().filter(|w| w[0] == "posthaste").map(|w| w.join(",")).collect();
    assert_eq!(
        ours,
        ["posthaste,a,b c", "posthaste,d", "posthaste,e,--f,$(sed 's/\"(/)/p' x)", "posthaste,g"]
    );
}
