#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>

/// Text in UTF-8 as code points, and the little of Unicode (version 14) that tokenizers ask about
/// them: exact for Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic, Devanagari and Thai, the
/// Chinese, Japanese and Korean scripts, punctuation, symbols and emoji. Characters of other
/// scripts count as letters, their marks too.
namespace unicode {

struct Range {
  char32_t first, last;
};

template <std::size_t Count>
bool within(const Range (&ranges)[Count], char32_t c) {
  const auto* const next = std::upper_bound(std::begin(ranges), std::end(ranges), c,
                                            [](char32_t x, const Range& r) { return x < r.first; });
  return next != std::begin(ranges) && c <= std::prev(next)->last;
}

/// General category L, with what lies unassigned between.
inline constexpr Range kLetters[] = {
    {0x41, 0x5A},     {0x61, 0x7A},      {0xAA, 0xAA},     {0xB5, 0xB5},     {0xBA, 0xBA},
    {0xC0, 0xD6},     {0xD8, 0xF6},      {0xF8, 0x2C1},    {0x2C6, 0x2D1},   {0x2E0, 0x2E4},
    {0x2EC, 0x2EC},   {0x2EE, 0x2EE},    {0x370, 0x374},   {0x376, 0x37D},   {0x37F, 0x37F},
    {0x386, 0x386},   {0x388, 0x3F5},    {0x3F7, 0x481},   {0x48A, 0x559},   {0x560, 0x588},
    {0x5D0, 0x5F2},   {0x620, 0x64A},    {0x66E, 0x66F},   {0x671, 0x6D3},   {0x6D5, 0x6D5},
    {0x6E5, 0x6E6},   {0x6EE, 0x6EF},    {0x6FA, 0x6FC},   {0x6FF, 0x6FF},   {0x904, 0x939},
    {0x93D, 0x93D},   {0x950, 0x950},    {0x958, 0x961},   {0x971, 0xE30},   {0xE32, 0xE33},
    {0xE40, 0xE46},   {0x1100, 0x1FBC},  {0x1FBE, 0x1FBE}, {0x1FC2, 0x1FCC}, {0x1FD0, 0x1FDB},
    {0x1FE0, 0x1FEC}, {0x1FF2, 0x1FFC},  {0x2071, 0x2071}, {0x207F, 0x207F}, {0x2090, 0x209C},
    {0x2102, 0x2102}, {0x2107, 0x2107},  {0x210A, 0x2113}, {0x2115, 0x2115}, {0x2119, 0x211D},
    {0x2124, 0x2124}, {0x2126, 0x2126},  {0x2128, 0x2128}, {0x212A, 0x212D}, {0x212F, 0x2139},
    {0x213C, 0x213F}, {0x2145, 0x2149},  {0x214E, 0x214E}, {0x2183, 0x2184}, {0x2C00, 0x2C7F},
    {0x2E2F, 0x2E2F}, {0x3005, 0x3006},  {0x3031, 0x3035}, {0x303B, 0x303C}, {0x3041, 0x3096},
    {0x309D, 0x309F}, {0x30A1, 0x30FA},  {0x30FC, 0x318E}, {0x31A0, 0x31BF}, {0x31F0, 0x31FF},
    {0x3400, 0x4DBF}, {0x4E00, 0xFAD9},  {0xFE70, 0xFEFC}, {0xFF21, 0xFF3A}, {0xFF41, 0xFF5A},
    {0xFF66, 0xFFDC}, {0x20000, 0x3134A}};
/// General category N.
inline constexpr Range kNumbers[] = {
    {0x30, 0x39},      {0xB2, 0xB3},     {0xB9, 0xB9},     {0xBC, 0xBE},     {0x660, 0x669},
    {0x6F0, 0x6F9},    {0x966, 0x96F},   {0xE50, 0xE59},   {0x2070, 0x2070}, {0x2074, 0x2079},
    {0x2080, 0x2089},  {0x2150, 0x2182}, {0x2185, 0x2189}, {0x2460, 0x249B}, {0x24EA, 0x24FF},
    {0x3007, 0x3007},  {0x3021, 0x3029}, {0x3038, 0x303A}, {0x3192, 0x3195}, {0x3220, 0x3229},
    {0x3248, 0x324F},  {0x3251, 0x325F}, {0x3280, 0x3289}, {0x32B1, 0x32BF}, {0xFF10, 0xFF19},
    {0x1F100, 0x1F10C}};
/// General category P.
inline constexpr Range kPunctuation[] = {
    {0x21, 0x23},     {0x25, 0x2A},     {0x2C, 0x2F},     {0x3A, 0x3B},     {0x3F, 0x40},
    {0x5B, 0x5D},     {0x5F, 0x5F},     {0x7B, 0x7B},     {0x7D, 0x7D},     {0xA1, 0xA1},
    {0xA7, 0xA7},     {0xAB, 0xAB},     {0xB6, 0xB7},     {0xBB, 0xBB},     {0xBF, 0xBF},
    {0x37E, 0x37E},   {0x387, 0x387},   {0x55A, 0x55F},   {0x589, 0x58A},   {0x5BE, 0x5BE},
    {0x5C0, 0x5C0},   {0x5C3, 0x5C3},   {0x5C6, 0x5C6},   {0x5F3, 0x5F4},   {0x609, 0x60A},
    {0x60C, 0x60D},   {0x61B, 0x61B},   {0x61D, 0x61F},   {0x66A, 0x66D},   {0x6D4, 0x6D4},
    {0x964, 0x965},   {0x970, 0x970},   {0xE4F, 0xE4F},   {0xE5A, 0xE5B},   {0x2010, 0x2027},
    {0x2030, 0x2043}, {0x2045, 0x2051}, {0x2053, 0x205E}, {0x207D, 0x207E}, {0x208D, 0x208E},
    {0x2E00, 0x2E2E}, {0x2E30, 0x2E4F}, {0x2E52, 0x2E5D}, {0x3001, 0x3003}, {0x3008, 0x3011},
    {0x3014, 0x301F}, {0x3030, 0x3030}, {0x303D, 0x303D}, {0x30A0, 0x30A0}, {0x30FB, 0x30FB},
    {0xFE10, 0xFE19}, {0xFE30, 0xFE61}, {0xFE63, 0xFE63}, {0xFE68, 0xFE68}, {0xFE6A, 0xFE6B},
    {0xFF01, 0xFF03}, {0xFF05, 0xFF0A}, {0xFF0C, 0xFF0F}, {0xFF1A, 0xFF1B}, {0xFF1F, 0xFF20},
    {0xFF3B, 0xFF3D}, {0xFF3F, 0xFF3F}, {0xFF5B, 0xFF5B}, {0xFF5D, 0xFF5D}, {0xFF5F, 0xFF65}};
/// General category Mn: what stands above or below the letter before it.
inline constexpr Range kMarks[] = {
    {0x300, 0x36F},   {0x483, 0x487},   {0x591, 0x5BD},   {0x5BF, 0x5BF},   {0x5C1, 0x5C2},
    {0x5C4, 0x5C5},   {0x5C7, 0x5C7},   {0x610, 0x61A},   {0x64B, 0x65F},   {0x670, 0x670},
    {0x6D6, 0x6DC},   {0x6DF, 0x6E4},   {0x6E7, 0x6E8},   {0x6EA, 0x6ED},   {0x900, 0x902},
    {0x93A, 0x93A},   {0x93C, 0x93C},   {0x941, 0x948},   {0x94D, 0x94D},   {0x951, 0x957},
    {0x962, 0x963},   {0xE31, 0xE31},   {0xE34, 0xE3A},   {0xE47, 0xE4E},   {0x20D0, 0x20DC},
    {0x20E1, 0x20E1}, {0x20E5, 0x20F0}, {0x302A, 0x302D}, {0x3099, 0x309A}, {0xFE00, 0xFE0F},
    {0xFE20, 0xFE2F}};
/// General categories Cc, Cf and Co.
inline constexpr Range kControls[] = {
    {0x0, 0x1F},      {0x7F, 0x9F},     {0xAD, 0xAD},       {0x600, 0x605},     {0x61C, 0x61C},
    {0x6DD, 0x6DD},   {0x200B, 0x200F}, {0x202A, 0x202E},   {0x2060, 0x206F},   {0xE000, 0xF8FF},
    {0xFEFF, 0xFEFF}, {0xFFF9, 0xFFFB}, {0xE0001, 0xE007F}, {0xF0000, 0x10FFFF}};
/// White_Space.
inline constexpr Range kSpaces[] = {
    {0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
    {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}};

inline bool is_letter(char32_t c) { return within(kLetters, c); }
inline bool is_number(char32_t c) { return within(kNumbers, c); }
inline bool is_punctuation(char32_t c) { return within(kPunctuation, c); }
inline bool is_mark(char32_t c) { return within(kMarks, c); }
inline bool is_control(char32_t c) { return within(kControls, c); }
inline bool is_space(char32_t c) { return within(kSpaces, c); }

/// The letters that those from `first` on are without their marks; a space where it is the same.
struct Bases {
  char32_t first;
  std::u32string_view letters;
};
// clang-format off
inline constexpr Bases kBases[] = {
    {0xC0,
     U"AAAAAA CEEEEIIII NOOOOO  UUUUY  aaaaaa ceeeeiiii nooooo  uuuuy y"
     U"AaAaAaCcCcCcCcDd  EeEeEeEeEeGgGgGgGgHh  IiIiIiIiI   JjKk LlLlLl "
     U"   NnNnNn   OoOoOo  RrRrRrSsSsSsSsTtTt  UuUuUuUuUuUuWwYyYZzZzZz"},
    {0x1A0,
     U"Oo             Uu"},
    {0x1CD,
     U"AaIiOoUuUuUuUuUu AaAaÆæ  GgKkOoOoƷʒj   Gg  NnAaÆæØøAaAaEeEeIiIiO"
     U"oOoRrRrUuUuSsTt  Hh      AaEeOoOoOoOoYy"},
    {0x385,
     U"¨Α·ΕΗΙ Ο ΥΩι                         ΙΥαεηιυ                    "
     U"     ιυουω    ϒϒ"},
    {0x400,
     U"ЕЕ Г   І    КИУ          И                               и      "
     U"                ее г   і    киу                       Ѵѵ"},
    {0x4C1,
     U"Жж             АаАа  Ее  ӘәЖжЗз  ИиИиОо  ӨөЭэУуУуУуЧч  Ыы"},
    {0x622,
     U"ااواي"},
    {0x6C0,
     U"ە ہ                ے"},
    {0x929,
     U"न       र  ळ"},
    {0x958,
     U"कखगजडढफय"},
    {0x1E00,
     U"AaBbBbBbCcDdDdDdDdDdEeEeEeEeEeFfGgHhHhHhHhHhIiIiKkKkKkLlLlLlLlMm"
     U"MmMmNnNnNnNnOoOoOoOoPpPpRrRrRrRrSsSsSsSsSsTtTtTtTtUuUuUuUuUuVvVv"
     U"WwWwWwWwWwXxXxYyZzZzZzhtwy ſ    AaAaAaAaAaAaAaAaAaAaAaAaEeEeEeEe"
     U"EeEeEeEeIiIiOoOoOoOoOoOoOoOoOoOoOoOoUuUuUuUuUuUuUuYyYyYyYy"},
    {0x1F00,
     U"ααααααααΑΑΑΑΑΑΑΑεεεεεε  ΕΕΕΕΕΕ  ηηηηηηηηΗΗΗΗΗΗΗΗιιιιιιιιΙΙΙΙΙΙΙΙ"
     U"οοοοοο  ΟΟΟΟΟΟ  υυυυυυυυ Υ Υ Υ ΥωωωωωωωωΩΩΩΩΩΩΩΩααεεηηιιοουυωω  "
     U"ααααααααΑΑΑΑΑΑΑΑηηηηηηηηΗΗΗΗΗΗΗΗωωωωωωωωΩΩΩΩΩΩΩΩααααα ααΑΑΑΑΑ ι "
     U" ¨ηηη ηηΕΕΗΗΗ᾿᾿᾿ιιιι  ιιΙΙΙΙ ῾῾῾υυυυρρυυΥΥΥΥΡ¨¨`  ωωω ωωΟΟΩΩΩ"},
    {0x2126,
     U"Ω   KA"},
    {0x304C,
     U"か き く け こ さ し す せ そ た ち  つ て と      はは ひひ ふふ へへ ほほ              "
     U"        う         ゝ             カ キ ク ケ コ サ シ ス セ ソ タ チ  ツ テ ト  "
     U"    ハハ ヒヒ フフ ヘヘ ホホ                      ウ  ワヰヱヲ   ヽ"},
};
// clang-format on

/// Appends c without its accents: decomposed (normal form D), its marks left out. Hangul decomposes
/// into its letters by arithmetic (The Unicode Standard, section 3.12).
inline void append_base(std::u32string& text, char32_t c) {
  if (is_mark(c)) return;
  if (c >= 0xAC00 && c <= 0xD7A3) {
    const char32_t syllable = c - 0xAC00, last = syllable % 28;
    text += static_cast<char32_t>(0x1100 + syllable / 588);
    text += static_cast<char32_t>(0x1161 + syllable % 588 / 28);
    if (last > 0) text += static_cast<char32_t>(0x11A7 + last);
    return;
  }
  for (const Bases& bases : kBases) {
    if (c < bases.first || c - bases.first >= bases.letters.size()) continue;
    const char32_t base = bases.letters[c - bases.first];
    if (base != U' ') c = base;
    break;
  }
  text += c;
}

/// The small letter of a capital that has no accents.
inline char32_t lower(char32_t c) {
  struct Capitals {
    char32_t first, last;
    int distance;
    char32_t step;
  };
  static constexpr Capitals capitals[] = {
      {0x41, 0x5A, 32, 1},        {0xC6, 0xC6, 32, 1},    {0xD0, 0xD0, 32, 1},
      {0xD8, 0xD8, 32, 1},        {0xDE, 0xDE, 32, 1},    {0x110, 0x110, 1, 1},
      {0x126, 0x126, 1, 1},       {0x132, 0x132, 1, 1},   {0x13F, 0x141, 1, 2},
      {0x14A, 0x14A, 1, 1},       {0x152, 0x152, 1, 1},   {0x166, 0x166, 1, 1},
      {0x18F, 0x18F, 202, 1},     {0x1E4, 0x1E4, 1, 1},   {0x391, 0x3A9, 32, 1},
      {0x3D8, 0x3EE, 1, 2},       {0x402, 0x40F, 80, 1},  {0x410, 0x42F, 32, 1},
      {0x460, 0x480, 1, 2},       {0x48A, 0x4BE, 1, 2},   {0x4C0, 0x4C0, 15, 1},
      {0x4C3, 0x4CD, 1, 2},       {0x4D4, 0x52E, 1, 2},   {0x531, 0x556, 48, 1},
      {0x1E9E, 0x1E9E, -7615, 1}, {0x1EFA, 0x1EFE, 1, 2}, {0x2160, 0x216F, 16, 1},
      {0xFF21, 0xFF3A, 32, 1}};
  for (const Capitals& run : capitals) {
    if (c >= run.first && c <= run.last && (c - run.first) % run.step == 0) {
      return static_cast<char32_t>(static_cast<int>(c) + run.distance);
    }
  }
  return c;
}

/// One code point of UTF-8 text from `at` on, which moves behind it. What is not UTF-8 becomes
/// U+FFFD byte by byte.
inline char32_t next(std::string_view text, std::size_t& at) {
  const auto byte = [&](std::size_t n) {
    return n < text.size() ? static_cast<unsigned char>(text[n]) : 0U;
  };
  const unsigned first = byte(at);
  const std::size_t length = first < 0x80       ? 1
                             : first >> 5 == 6  ? 2
                             : first >> 4 == 14 ? 3
                             : first >> 3 == 30 ? 4
                                                : 0;
  char32_t c = length == 1 ? first : first & (0x7FU >> length);
  bool valid = length > 0;
  for (std::size_t n = 1; n < length; ++n) {
    valid = valid && byte(at + n) >> 6 == 2;
    c = c << 6 | (byte(at + n) & 0x3F);
  }
  constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  valid = valid && c >= least[length] && c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF);
  at += valid ? length : 1;
  return valid ? c : U'\uFFFD';
}

inline std::u32string decode(std::string_view text) {
  std::u32string result;
  for (std::size_t at = 0; at < text.size();) result += next(text, at);
  return result;
}

inline void append(std::string& text, char32_t c) {
  if (c < 0x80) {
    text += static_cast<char>(c);
    return;
  }
  const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  constexpr unsigned lead[] = {0, 0xC0, 0xE0, 0xF0};
  text += static_cast<char>(lead[more] | c >> (6 * more));
  for (int n = more; n-- > 0;) text += static_cast<char>(0x80 | (c >> (6 * n) & 0x3F));
}

inline std::string encode(std::u32string_view text) {
  std::string result;
  for (const char32_t c : text) append(result, c);
  return result;
}

}  // namespace unicode
