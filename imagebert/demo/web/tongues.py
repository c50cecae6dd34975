# ruff: noqa: RUF001
"""Languages that pages are in: sentences of each, the words of its navigation, and charsets that its sites use."""

from __future__ import annotations

from typing import NamedTuple

from imagebert.demo.web.words import PROSE, Grammar, listed


class Tongue(NamedTuple):
    """A language as a site needs it."""

    code: str
    charsets: list[str]
    grammar: Grammar  # has "prose", "headline" and "comment"; of other languages than English "sentence", too
    menu: list[str]
    between: str  # sentences


def _tongue(code: str, charsets: str, phrases: str) -> Tongue:
    grammar = Grammar(phrases)
    return Tongue(code, listed(charsets, " "), grammar, grammar.phrases["menu"], "" if code in ("zh", "ja") else " ")


ENGLISH = Tongue(
    "en",
    listed("utf-8 utf-8 utf-8 iso-8859-1 windows-1252 us-ascii", " "),
    PROSE,
    listed(
        "Home|News|Politics|Business|Sport|Culture|Travel|Science|Health|Opinion|Video|Shop|Contact|About|Archive|"
        "Weather|Jobs|Events|Subscribe|Help|Careers|Press|Forum|Blog|Gallery|Recipes|Local|World|Money|Style|Books|Music|Games|"
        "Privacy|Terms|Imprint|Newsletter|Search|Login|Register"
    ),
    " ",
)

OTHERS = (
    _tongue(
        "de",
        "iso-8859-1 utf-8 windows-1252 utf-8",
        """
menu: Startseite|Nachrichten|Politik|Wirtschaft|Sport|Kultur|Reise|Über uns|Kontakt|Impressum|Suche
prose: {who} {did} {where}, {why}.|{where} {did} {who}.
sentence: {shown} {acts} {where}.
headline: {who} {did}
comment: {yes}|{prose}
who: der Bürgermeister|die Ministerin|ein Sprecher der Gesellschaft|unsere Nachbarin|der Verein|die Polizei
did: hat den Vertrag unterschrieben|wollte sich nicht äußern|hat mehr Zeit gefordert|hat den Preis gewonnen|musste
    die Gebühr bezahlen|hat einen Bericht veröffentlicht
where: in der Stadt|auf einer grünen Wiese|am Ufer des Flusses|vor dem alten Bahnhof|in den Bergen|auf dem Markt|im
    Schnee|neben einer großen Brücke|am Strand
why: weil die Preise gestiegen sind|obwohl niemand den Grund kennt|damit sich etwas ändert|wie gestern bekannt wurde
shown: ein Mann im roten Mantel|eine junge Frau mit Fahrrad|ein brauner Hund|zwei Kinder|eine Gruppe von
    Wanderern|ein altes Segelschiff|eine schwarze Katze
acts: wartet|ist zu sehen|ruht sich aus|bewegt sich langsam|steht allein|erscheint bei Sonnenuntergang
yes: danke dafür!|das sehe ich anders.|sehr schöner Beitrag
""",
    ),
    _tongue(
        "fr",
        "iso-8859-15 utf-8 iso-8859-1 utf-8",
        """
menu: Accueil|Actualités|Économie|Société|Sports|Voyages|Météo|Contact|Qui sommes-nous|Mentions légales
prose: {who} {did} {where}, {why}.|selon les habitants, {who} {did}.
sentence: {shown} {acts} {where}.
headline: {who} {did}
comment: {yes}|{prose}
who: le maire|la ministre|un porte-parole de l'entreprise|notre voisine|le syndicat|la directrice de l'école
did: a signé le contrat|a refusé de répondre|a demandé plus de temps|a gagné le prix|a publié un rapport|a changé
    les horaires
where: dans la ville|sur une prairie verte|au bord de la rivière|devant la vieille gare|à la montagne|au marché|dans
    la neige|près d'un grand pont|sur la plage
why: parce que les prix ont augmenté|bien que personne ne sache pourquoi|comme prévu|ce qui a surpris tout le monde
shown: un homme en manteau rouge|une jeune femme à vélo|un chien brun|deux enfants|un groupe de randonneurs|un vieux
    voilier|un chat noir
acts: attend|se repose|avance lentement|reste seul|apparaît au coucher du soleil|regarde l'objectif
yes: merci beaucoup !|je ne suis pas d'accord.|très bel article
""",
    ),
    _tongue(
        "es",
        "iso-8859-1 utf-8 utf-8",
        """
menu: Inicio|Noticias|Política|Economía|Deportes|Cultura|Viajes|Quiénes somos|Contacto|Aviso legal
prose: {who} {did} {where}, {why}.|según los vecinos, {who} {did}.
sentence: {shown} {acts} {where}.
headline: {who} {did}
comment: {yes}|{prose}
who: el alcalde|la ministra|un portavoz de la empresa|nuestra vecina|el sindicato|el nuevo dueño
did: firmó el contrato|no quiso responder|pidió más tiempo|ganó el premio|publicó un informe|cambió los horarios
where: en la ciudad|en un prado verde|a la orilla del río|delante de la vieja estación|en las montañas|en el
    mercado|en la nieve|junto a un gran puente|en la playa
why: porque los precios han subido|aunque nadie sabe la razón|como se esperaba|y eso sorprendió a todos
shown: un hombre con abrigo rojo|una mujer joven en bicicleta|un perro marrón|una niña pequeña|un grupo de
    excursionistas|un viejo velero|un gato negro
acts: espera|descansa|camina despacio|mira a la cámara|aparece al atardecer|se queda quieto
yes: ¡muchas gracias!|no estoy de acuerdo.|qué bonito artículo
""",
    ),
    _tongue(
        "ru",
        "windows-1251 utf-8 koi8-r utf-8",
        """
menu: Главная|Новости|Политика|Экономика|Спорт|Культура|Погода|Контакты|О нас|Поиск
prose: {who} {did} {where}, {why}.|как сообщают жители, {who} {did}.
sentence: {shown} {acts} {where}.
headline: {who} {did}
comment: {yes}|{prose}
who: мэр города|министр|представитель компании|новый владелец|директор школы|наш сосед
did: подписал договор|отказался отвечать|попросил больше времени|получил премию|опубликовал отчёт|отменил встречу
where: в городе|на зелёном лугу|на берегу реки|перед старым вокзалом|в горах|на рынке|на снегу|у большого моста|на
    пляже
why: потому что цены снова выросли|хотя никто не знает причины|как и ожидалось|что удивило всех
shown: мужчина в красном пальто|молодая женщина с велосипедом|коричневая собака|маленький ребёнок|группа
    туристов|старый парусник|чёрная кошка
acts: ждёт|отдыхает|медленно движется|стоит на закате|смотрит в камеру|остаётся на месте
yes: большое спасибо!|я не согласен.|очень интересная статья
""",
    ),
    _tongue(
        "ar",
        "windows-1256 utf-8 utf-8",
        """
menu: الرئيسية|الأخبار|السياسة|الاقتصاد|الرياضة|الثقافة|السفر|اتصل بنا|من نحن|بحث
prose: {who} {did} {where} {why}.|وفقا للسكان {who} {did}.
sentence: {shown} {acts} {where}.
headline: {who} {did}
comment: {yes}|{prose}
who: رئيس البلدية|الوزير|المتحدث باسم الشركة|المالك الجديد|مدير المدرسة|جارنا
did: وقع العقد|رفض الإجابة|طلب المزيد من الوقت|فاز بالجائزة|نشر تقريرا|ألغى الاجتماع
where: في المدينة|في مرج أخضر|على ضفة النهر|أمام المحطة القديمة|في الجبال|في السوق|على الشاطئ|قرب الجسر الكبير
why: لأن الأسعار ارتفعت|رغم أن أحدا لا يعرف السبب|كما كان متوقعا|وهذا فاجأ الجميع
shown: رجل في معطف أحمر|كلب بني|طفل صغير|قارب شراعي قديم|قط أسود|رجل عجوز مع دراجة
acts: ينتظر|يستريح|يتحرك ببطء|يظهر عند الغروب|ينظر إلى الكاميرا
yes: شكرا جزيلا!|لا أوافق.|مقال جميل جدا
""",
    ),
    _tongue(
        "zh",
        "gb18030 utf-8 gbk utf-8",
        """
menu: 首页|新闻|政治|经济|体育|文化|旅游|天气|联系我们|关于我们|搜索
prose: {who}{where}{did},{why}。|据居民说,{who}{did}。
sentence: {shown}{where}{acts}。
headline: {who}{did}
comment: {yes}|{prose}
who: 市长|部长|公司发言人|新的业主|学校校长|我们的邻居
did: 签署了合同|拒绝回答问题|要求更多的时间|获得了奖项|发表了一份报告|取消了会议
where: 在城市里|在绿色的草地上|在河边|在旧火车站前面|在山上|在市场|在雪地里|在大桥旁边|在海滩上
why: 因为价格又上涨了|虽然没有人知道原因|正如预期的那样|这让大家都很惊讶
shown: 一个穿红色外套的男人|一位骑自行车的年轻女子|一只棕色的狗|两个孩子|一群徒步者|一艘旧帆船|一只黑猫
acts: 等待着|休息|慢慢地移动|看着镜头|出现在日落时分|静静地站着
yes: 非常感谢!|我不同意。|很好的文章
""",
    ),
    _tongue(
        "ja",
        "shift_jis utf-8 euc-jp utf-8",
        """
menu: ホーム|ニュース|政治|経済|スポーツ|文化|旅行|天気|お問い合わせ|会社概要|検索
prose: {who}は{where}{did}。{why}。|住民によると、{who}は{did}。
sentence: {shown}が{where}{acts}。
headline: {who}{did}
comment: {yes}|{prose}
who: 市長|大臣|会社の広報担当者|新しい所有者|学校の校長|隣の人
did: 契約に署名しました|質問に答えませんでした|もっと時間を求めました|賞を受賞しました|報告書を発表しました
where: 街の中で|緑の草原で|川のほとりで|古い駅の前で|山の中で|市場で|雪の中で|大きな橋のそばで|浜辺で
why: 価格がまた上がったからです|理由は誰にも分かりません|予想どおりでした|みんなが驚きました
shown: 赤いコートを着た男性|自転車に乗った若い女性|茶色い犬|二人の子供|登山者のグループ|古い帆船|黒い猫
acts: 待っています|休んでいます|ゆっくり動いています|カメラを見ています|夕日の中に立っています
yes: ありがとうございます!|私はそう思いません。|とても良い記事ですね
""",
    ),
)
